"""Networks, embeddings of their inputs z and t, precision, fused kernels."""
