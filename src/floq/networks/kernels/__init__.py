"""The K-step integration of a flow critic as one kernel for Hopper GPUs (H100, H200), opt-in.

`fused.py` defines the computation and its batching, `hopper.py` is the kernel, `plan.py` its limits and memory layout.

Lower bounds of the time: at published size (4 layers of 512, K = 8, two members, 2,048 rows, 42 inputs) one integration
is 53 GFLOP, without the first layer's product with (s, a), on 4 MB of weights and inputs: 13,000 operations per byte,
where the chip balances at about 240. So it is compute-bound. At the 798 TFLOP/s that a large matmul reaches on an H100,
an integration takes 0.067 ms and the sixteen of a fleet 1.07 ms. Plain XLA takes much longer because the GELU and
LayerNorm of every layer pass through device memory; here they stay on the chip.

Measured on an H100 on 2026-11-22 with jax 0.11.2, with the prototype of this kernel and not with this kernel, for the
target and the online integration in one launch (twice the above; lower bounds 0.13 and 2.1 ms): one run 0.46 ms with 64
rows per block and 0.60 with 128, sixteen runs 4.9 ms with 128. Its z was within 2.2e-3 of float32, and bitwise
reproducible. With it the whole update of sixteen runs took 10.7 ms instead of 17.3, that of one run 1.8 instead of 2.2.
"""

from floq.networks.kernels.fused import Settings as Settings
from floq.networks.kernels.fused import integrate_fused as integrate_fused
from floq.networks.kernels.plan import check_machine as check_machine
from floq.networks.kernels.plan import check_settings as check_settings
