"""The machines that programs are compiled for, none of which has to be there."""

from typing import Any, NamedTuple

GPU_FLAGS = (
    # Autotuning, and with it Triton's products, would ask a device.
    "--xla_gpu_enable_triton_gemm=false",
    "--xla_gpu_autotune_level=0",
)


class Rates(NamedTuple):
    """What a device does at best, by its data sheet.

    Attributes:
      memory: Bytes a second.
      half: Operations a second of products of bfloat16 and float16.
      tf32: The same of float32, rounded to TF32 (or what a TPU rounds it to).
      double: The same of float64.
    """

    memory: float
    half: float
    tf32: float
    double: float

    def products(self, dtype: str) -> float:
        """Of operands of that type, by HLO's name of it."""
        return {"bf16": self.half, "f16": self.half, "f64": self.double}.get(
            dtype, self.tf32
        )


class Machine(NamedTuple):
    """A kind of device, and how many there are.

    Attributes:
      name: In tables.
      platform: "cuda" or "tpu".
      devices: As many share a batch.
      memory: Bytes of a device.
      rates: Of a device.
      capability: Of a GPU: (major, minor).
      description: What `jax.experimental.topologies` is told of it.
    """

    name: str
    platform: str
    devices: int
    memory: int
    rates: Rates
    capability: tuple[int, int] | None
    description: str

    def topology(self) -> dict[str, Any]:
        """Arguments of `jax.experimental.topologies.get_topology_desc`."""
        if self.platform == "tpu":
            return {"platform": "tpu", "topology_name": self.description}
        return {
            "platform": "cuda",
            "topology_name": "",
            "target_config": self.description,
            # Partitions x hosts x devices.
            "topology": f"1x1x{self.devices}",
        }


def _gpu(
    name: str,
    *,
    capability: tuple[int, int],
    processors: int,
    shared: int,
    cache: int,
    clock: float,
    memory: int,
    bandwidth: float,
) -> str:
    """A `GpuTargetConfigProto` as text; `shared` is bytes of a multiprocessor."""
    major, minor = capability
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared}
  shared_memory_per_block_optin: {shared - 1024}
  threads_per_core_limit: 2048
  core_count: {processors}
  fpus_per_core: {128 if major >= 9 else 64}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth:.0f}
  l2_cache_size: {cache}
  clock_rate_ghz: {clock}
  device_memory_size: {memory}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 7 }}
runtime_version {{ major: 13 }}
device_description_str: "{name}"
"""


# Dense products, without sparsity.
_H100_RATES = Rates(memory=3.35e12, half=989.4e12, tf32=494.7e12, double=66.9e12)
_A100_RATES = Rates(memory=2.04e12, half=312e12, tf32=156e12, double=19.5e12)
_V5E_RATES = Rates(memory=0.819e12, half=197e12, tf32=197e12, double=197e12)

_H100 = _gpu(
    "NVIDIA H100 80GB HBM3",
    capability=(9, 0),
    processors=132,
    shared=233472,
    cache=52428800,
    clock=1.98,
    memory=84929347584,
    bandwidth=3352320000000,
)
_A100 = _gpu(
    "NVIDIA A100-SXM4-80GB",
    capability=(8, 0),
    processors=108,
    shared=167936,
    cache=41943040,
    clock=1.41,
    memory=84974239744,
    bandwidth=2039000000000,
)

MACHINES = {
    "h100": Machine("H100", "cuda", 1, 80 << 30, _H100_RATES, (9, 0), _H100),
    "h100x8": Machine("8 H100", "cuda", 8, 80 << 30, _H100_RATES, (9, 0), _H100),
    "a100": Machine("A100", "cuda", 1, 80 << 30, _A100_RATES, (8, 0), _A100),
    "v5e": Machine("TPU v5e", "tpu", 4, 16 << 30, _V5E_RATES, None, "v5e:2x2"),
}
