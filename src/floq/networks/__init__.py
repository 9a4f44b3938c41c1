"""Networks, and what they read: embeddings of z and t, lower precision, fused kernels."""
