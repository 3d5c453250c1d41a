"""The blocks of the codes and of the bank, for the linear model, as sums over experts.

With ``A`` held, both are least squares. Nothing but ``G_i = A_i^T A_i`` and ``T_i = A_i^T W_i`` of an expert enters.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from eigenloom.experts.model import mix

DIRECT_LIMIT = 8192
"""Largest ``m r`` whose normal equations are formed and factored."""


def code_systems(gram: Tensor, cross: Tensor, bank: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``H_i[j, k] = <B_j, G_i B_k>`` ``[b, m, m]`` and ``h_i[j] = <T_i, B_j>`` ``[b, m]``, float64.

    Args:
        gram: ``A_i^T A_i`` ``[b, r, r]``.
        cross: ``A_i^T W_i`` ``[b, r, d]``.
        bank: ``[m, r, d]`` of the same dtype.
    """
    return code_matrices(gram, bank), (cross.flatten(1) @ bank.flatten(1).T).double()


def code_matrices(gram: Tensor, bank: Tensor) -> Tensor:
    """Return the ``H_i`` ``[b, m, m]`` alone."""
    exact, flat = bank.double(), gram.double().flatten(1)
    H = flat.new_empty(len(flat), len(bank), len(bank))
    for j, atom in enumerate(exact):
        # <B_j, G B_k> = sum_rs G[r, s] (B_j B_k^T)[r, s]: products of atoms once, then one number per expert and pair.
        H[:, j] = flat @ (atom @ exact.mT).flatten(1).T
    return (H + H.mT) / 2


@dataclass
class BankSystem:
    """The normal equations of the bank: ``sum_ij`` of everything that ``A`` and the codes say.

    Fields: ``grams [E, r, r]``, ``codes [E, m]`` and ``right [m, r, d]``, ``sum_i alpha_ij A_i^T W_i``; float64.
    """

    grams: Tensor
    codes: Tensor
    right: Tensor

    @property
    def size(self) -> int:
        """``m r``."""
        return self.right.shape[0] * self.right.shape[1]

    def matrix(self) -> Tensor:
        """Return ``N = sum_i (alpha_i alpha_i^T) kron G_i`` ``[m r, m r]``."""
        m, r, _ = self.right.shape
        products = (self.codes[:, :, None] * self.codes[:, None, :]).flatten(1)
        return (products.T @ self.grams.flatten(1)).view(m, m, r, r).transpose(1, 2).reshape(m * r, m * r)

    def apply(self, bank: Tensor) -> Tensor:
        """Return ``N B`` ``[m, r, d]`` without forming N."""
        return (self.codes.T @ (self.grams @ mix(self.codes, bank)).flatten(1)).view_as(bank)

    def diagonal_blocks(self) -> Tensor:
        """Return ``sum_i alpha_ij^2 G_i`` ``[m, r, r]``."""
        return (self.codes.square().T @ self.grams.flatten(1)).unflatten(1, self.grams.shape[1:])

    def value(self, bank: Tensor) -> float:
        """Return ``<B, N B> / 2 - <right, B>``, half the squared error but for a constant."""
        return float((bank * (self.apply(bank) / 2 - self.right)).sum())


def bank_by_cholesky(system: BankSystem, ridge: float = 1e-12) -> Tensor:
    """Solve ``N B = right`` by one factorization; pseudo-inverse where it fails. Returns ``[m, r, d]``."""
    m, r, d = system.right.shape
    matrix, right = system.matrix(), system.right.reshape(m * r, d)
    matrix.diagonal().add_(ridge * matrix.diagonal().mean())
    factor, info = torch.linalg.cholesky_ex(matrix)
    if bool(info):
        return (torch.linalg.pinv(matrix, rcond=1e-12, hermitian=True) @ right).view(m, r, d)
    return torch.cholesky_solve(right, factor).view(m, r, d)


def bank_by_cg(system: BankSystem, start: Tensor, tolerance: float = 1e-10, steps: int = 500) -> Tensor:
    """Solve by conjugate gradients from ``start``, preconditioned by the diagonal blocks; any stop lowers the error."""
    factors = _factors(system.diagonal_blocks())
    bank = start.double().clone()
    left = system.right - system.apply(bank)
    limit = tolerance * float(system.right.norm())
    z = torch.cholesky_solve(left, factors)
    direction, rho = z, float((left * z).sum())
    for _ in range(steps):
        if float(left.norm()) <= limit or rho <= 0:
            break
        image = system.apply(direction)
        step = rho / float((direction * image).sum())
        bank += step * direction
        left -= step * image
        z = torch.cholesky_solve(left, factors)
        rho, before = float((left * z).sum()), rho
        direction = z + (rho / before) * direction
    return bank


def bank_by_gauss_seidel(system: BankSystem, start: Tensor, tolerance: float = 1e-10, rounds: int = 500) -> Tensor:
    """Solve atom by atom, each exactly given the others, until a round moves the bank by less than ``tolerance``."""
    factors = _factors(system.diagonal_blocks())
    bank = start.double().clone()
    mixed = mix(system.codes, bank)
    for _ in range(rounds):
        moved = 0.0
        for j in range(len(bank)):
            users = system.codes[:, j].nonzero()[:, 0]
            alpha = system.codes[users, j]
            image = torch.einsum("i,ird->rd", alpha, system.grams[users] @ mixed[users])
            change = torch.cholesky_solve(system.right[j] - image, factors[j])
            bank[j] += change
            mixed[users] += alpha[:, None, None] * change
            moved += float(change.square().sum())
        if moved**0.5 <= tolerance * float(bank.norm()):
            break
    return bank


def solve_bank(system: BankSystem, start: Tensor) -> Tensor:
    """Solve the block of the bank: directly while ``m r`` is small, by sparse codes atom by atom, else by CG."""
    if system.size <= DIRECT_LIMIT:
        return bank_by_cholesky(system)
    if float((system.codes != 0).double().mean()) <= 0.25:
        return bank_by_gauss_seidel(system, start, tolerance=1e-5, rounds=20)
    return bank_by_cg(system, start, tolerance=1e-6, steps=50)


def _factors(blocks: Tensor) -> Tensor:
    """Return Cholesky factors of positive semidefinite blocks, with a ridge that keeps unused atoms still."""
    mean = blocks.diagonal(dim1=1, dim2=2).mean(1)
    eye = torch.eye(blocks.shape[1], dtype=blocks.dtype, device=blocks.device)
    ridge = torch.where(mean > 0, 1e-12 * mean, 1.0)
    return torch.linalg.cholesky(blocks + ridge[:, None, None] * eye)
