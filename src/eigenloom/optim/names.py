"""Names by which transformer code bases call their projections, where module types cannot tell them apart."""

ROLES = {
    "q": (
        "q",
        "q_proj",
        "query",
        "wq",
        "to_q",
        "q_lin",
        "query_proj",
        "q_linear",
        "linear_q",
        "q_attn",
        "w_q",
        "q_proj_weight",
    ),
    "k": ("k", "k_proj", "key", "wk", "to_k", "k_lin", "key_proj", "k_linear", "linear_k", "w_k", "k_proj_weight"),
    "v": ("v", "v_proj", "value", "wv", "to_v", "v_lin", "value_proj", "v_linear", "linear_v", "w_v", "v_proj_weight"),
}
"""Role -> last component of the name of its module (or, in ``nn.MultiheadAttention``, of its parameter)."""
FUSED = ("qkv", "qkv_proj", "Wqkv", "c_attn", "in_proj", "in_proj_weight", "to_qkv", "qkv_linear")
"""Query, key and value in one weight, one after the other."""
INTERLEAVED = ("query_key_value",)
"""The three interleaved by head in some models and not in others: left whole unless sizes are given."""
HEADS = (
    "head", "heads", "lm_head", "classifier", "score", "embed_out", "output_layer", "output_projection", "qa_outputs",
    "proj_out", "fc",
)  # fmt: skip
EMBEDDINGS = ("embed", "position", "pos_", "token", "class_", "query_tokens")
"""Parts of the names of bare parameters that are embeddings: they do not decay."""
