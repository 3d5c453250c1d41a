"""Networks: the small vision transformer."""
