from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import profiles.numerics
from profiles.accelerator import AcceleratorProfile
from profiles.catalog import Catalog, load_catalog, read_yaml
from profiles.hardware import cpu_profile
from profiles.numerics import (
    KV_TYPES,
    SCHEMES,
    NumericsError,
    Support,
    Verdict,
    check_dtype,
    check_engine,
    check_kv_dtype,
    check_scheme,
    formats_of,
)

ENGINES = ("vllm", "native")
DTYPES = ("float32", "bfloat16", "float16")
KV_DTYPES = tuple(KV_TYPES)
NATIVE, EMULATED, UNSUPPORTED = Support.NATIVE, Support.EMULATED, Support.UNSUPPORTED


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return load_catalog()


def verdicts(profile: AcceleratorProfile, engine: str) -> dict[tuple[str, str], Verdict]:
    found = {("scheme", name): check_scheme(name, profile, engine) for name in SCHEMES}
    found |= {("dtype", name): check_dtype(name, profile, engine) for name in DTYPES}
    return found | {("kv", name): check_kv_dtype(name, profile, engine) for name in KV_DTYPES}


# Each of these was reported by someone whose server did not start, or was slower than promised.
@pytest.mark.parametrize(
    ("scheme", "device", "support", "nearest", "reason"),
    [
        ("fp8", "A10", EMULATED, "fp8_w8a16", "no FP8 products below compute capability 8.9"),
        ("fp8", "RTX-3090", EMULATED, "fp8_w8a16", "keeps only the weights in FP8"),
        ("fp8", "A100-SXM-80GB", EMULATED, "fp8_w8a16", "keeps only the weights in FP8"),
        ("fp8_w8a16", "A100-SXM-80GB", NATIVE, None, ""),
        ("fp8", "V100-SXM2-16GB", UNSUPPORTED, "gptq_int8", "need compute capability 7.5"),
        ("awq", "V100-SXM2-32GB", UNSUPPORTED, "gptq", "AWQ kernels need compute capability 7.5"),
        ("int8", "B200-SXM", UNSUPPORTED, "fp8", "compute capability 10.0 (Blackwell)"),
        ("int8", "B300-SXM", UNSUPPORTED, "fp8", "compute capability 10.0 (Blackwell)"),
        ("int8", "RTX-5090", UNSUPPORTED, "fp8", "compute capability 10.0 (Blackwell)"),
        ("int8", "GB10", UNSUPPORTED, "fp8", "compute capability 10.0 (Blackwell)"),
        ("nvfp4", "H100-SXM", EMULATED, "awq", "no FP4 products below compute capability 10.0"),
        ("nvfp4", "L40S", EMULATED, "awq", "keeps only the weights in FP4"),
        ("nvfp4", "T4", EMULATED, "awq", "keeps only the weights in FP4"),
        ("nvfp4", "V100-SXM2-16GB", UNSUPPORTED, "gptq", "need compute capability 7.5"),
        ("nvfp4", "GB10", EMULATED, "awq", "disputed"),
        ("nvfp4", "B200-SXM", NATIVE, None, ""),
        ("nvfp4", "RTX-5090", NATIVE, None, ""),
        ("mxfp4", "H100-SXM", EMULATED, "awq", "decoded to 16 bits"),
        ("mxfp4", "T4", UNSUPPORTED, "awq", "need compute capability 8.0"),
        ("mxfp4", "B200-SXM", NATIVE, None, ""),
        ("mxfp4", "MI355X", NATIVE, None, ""),
        ("mxfp4", "MI300X", EMULATED, "fp8", "no MX products before gfx950"),
        ("fp8", "L4", NATIVE, None, ""),
        ("fp8", "MI300X", NATIVE, None, ""),
        ("fp8", "MI210", UNSUPPORTED, "none", "FP8 needs gfx942 or gfx950"),
        ("fp8", "RX-7900-XTX", UNSUPPORTED, "none", "FP8 needs gfx942 or gfx950"),
        ("fp8", "TPU-v5e", UNSUPPORTED, "int8", "no FP8 products there"),
        ("int8", "T4", NATIVE, None, ""),
        ("int8", "V100-SXM2-16GB", UNSUPPORTED, "gptq_int8", "INT8 products need"),
        ("int8", "TPU-v5e", NATIVE, None, ""),
        ("gptq", "V100-SXM2-16GB", NATIVE, None, ""),
        ("awq", "T4", NATIVE, None, ""),
        ("awq", "Arc-B580", NATIVE, None, ""),
        ("bitsandbytes", "MI300X", UNSUPPORTED, "fp8", "NVIDIA devices only"),
    ],
)
def test_schemes_in_vllm(
    catalog: Catalog, scheme: str, device: str, support: Support, nearest: str | None, reason: str
) -> None:
    verdict = check_scheme(scheme, catalog.find(device), "vllm")
    assert (verdict.support, verdict.nearest) == (support, nearest)
    assert reason in verdict.reason


@pytest.mark.parametrize(
    ("device", "support", "nearest"),
    [
        ("T4", UNSUPPORTED, "float16"),
        ("RTX-2080-Ti", UNSUPPORTED, "float16"),
        ("V100-SXM2-16GB", UNSUPPORTED, "float16"),
        ("A10", NATIVE, None),
        ("MI210", NATIVE, None),
        ("TPU-v5e", NATIVE, None),
    ],
)
def test_bfloat16_in_vllm(
    catalog: Catalog, device: str, support: Support, nearest: str | None
) -> None:
    verdict = check_dtype("bfloat16", catalog.find(device), "vllm")
    assert (verdict.support, verdict.nearest) == (support, nearest)
    assert ("compute capability 8.0" in verdict.reason) == (support is UNSUPPORTED)


@pytest.mark.parametrize(
    ("device", "support"),
    [
        ("A10", UNSUPPORTED),
        ("A100-SXM-80GB", UNSUPPORTED),
        ("Orin", UNSUPPORTED),
        ("T4", UNSUPPORTED),
        ("L4", NATIVE),
        ("H100-SXM", NATIVE),
        ("RTX-5090", NATIVE),
        ("MI300X", NATIVE),
        ("MI210", UNSUPPORTED),
    ],
)
def test_fp8_kv_cache_in_vllm(catalog: Catalog, device: str, support: Support) -> None:
    verdict = check_kv_dtype("fp8", catalog.find(device), "vllm")
    assert verdict.support is support
    if support is UNSUPPORTED:
        assert verdict.nearest == "auto"
        assert "not verified" in verdict.reason


@pytest.mark.parametrize(
    ("engine", "device", "support", "nearest"),
    [
        ("vllm", "T4", NATIVE, None),
        ("vllm", "MI300X", NATIVE, None),
        ("vllm", "Gaudi-2", NATIVE, None),
        ("vllm", "cpu-avx512", NATIVE, None),
        ("vllm", "cpu-neon", NATIVE, None),
        ("vllm", "cpu-generic", UNSUPPORTED, "native"),
        ("vllm", "M2-Max", UNSUPPORTED, None),
        ("native", "cpu-generic", NATIVE, None),
        ("native", "cpu-amx", NATIVE, None),
        ("native", "H100-SXM", NATIVE, None),
        ("native", "T4", UNSUPPORTED, "vllm"),
        ("native", "MI300X", UNSUPPORTED, "vllm"),
        ("native", "M2-Max", UNSUPPORTED, None),
    ],
)
def test_engines(
    catalog: Catalog, engine: str, device: str, support: Support, nearest: str | None
) -> None:
    verdict = check_engine(engine, catalog.find(device))
    assert (verdict.support, verdict.nearest) == (support, nearest)
    assert bool(verdict.reason) == (support is UNSUPPORTED)


def test_an_old_gpu_runs_no_engine() -> None:
    pascal = replace(load_catalog().find("T4"), capability=(6, 1), architecture="sm_61")
    assert check_engine("vllm", pascal).reason == "vLLM needs compute capability 7.0"
    assert check_scheme("none", pascal, "vllm").support is UNSUPPORTED


@pytest.mark.parametrize(
    ("features", "dtype", "support", "compute"),
    [
        ({"avx2", "fma", "f16c"}, "bfloat16", EMULATED, "fp32"),
        ({"avx2", "fma", "f16c"}, "float16", EMULATED, "fp32"),
        ({"avx2", "fma", "f16c"}, "float32", NATIVE, "fp32"),
        ({"asimd", "asimddp", "bf16"}, "bfloat16", NATIVE, "bf16"),
        ({"asimd", "asimdhp", "fphp"}, "float16", NATIVE, "fp16"),
    ],
)
def test_types_that_a_processor_lacks_are_emulated(
    features: set[str], dtype: str, support: Support, compute: str
) -> None:
    verdict = check_dtype(dtype, cpu_profile(features, num_cores=4), "native")
    assert (verdict.support, verdict.compute) == (support, compute)


def test_the_native_engine_refuses_what_it_has_no_kernels_for(catalog: Catalog) -> None:
    device = catalog.find("cpu-avx512")
    verdict = check_scheme("nvfp4", device, "native")
    assert (verdict.support, verdict.nearest) == (UNSUPPORTED, "int8")
    assert verdict.reason == "the native engine has no kernels for nvfp4 weights"
    verdict = check_kv_dtype("fp8", device, "native")
    assert (verdict.support, verdict.nearest) == (UNSUPPORTED, "int8")


ZEN_2 = {"avx2", "fma", "f16c"}
AVX_512 = ZEN_2 | {"avx512f", "avx512bw", "avx512vl", "avx512dq"}


@pytest.mark.parametrize("scheme", ["int8", "int8_g128", "int4", "int4_g128"])
@pytest.mark.parametrize(
    ("features", "kernel", "per_cycle"),
    [
        (ZEN_2, "AVX2", 64),
        (ZEN_2 | {"avx_vnni"}, "AVX-VNNI", 128),
        (AVX_512, "AVX-512", 128),
        (AVX_512 | {"avx512_vnni"}, "AVX-512 VNNI", 256),
        (AVX_512 | {"avx512_vnni", "avx_vnni", "avx512_bf16"}, "AVX-512 VNNI", 256),
        # The tiles would do 2048, but nobody uses them.
        (AVX_512 | {"avx512_vnni", "amx_tile", "amx_bf16", "amx_int8"}, "AVX-512 VNNI", 256),
        ({"asimd", "asimddp"}, "NEON dot product", 64),
        ({"asimd", "asimddp", "i8mm"}, "NEON dot product", 64),
        ({"asimd", "asimddp", "i8mm", "sve", "svei8mm"}, "NEON dot product", 128),
    ],
)
def test_integer_products_of_the_native_engine(
    scheme: str, features: set[str], kernel: str, per_cycle: float
) -> None:
    profile = cpu_profile(features, num_cores=1, clock_hz=1e9)
    verdict = check_scheme(scheme, profile, "native")
    assert (verdict.support, verdict.kernel, verdict.compute) == (NATIVE, kernel, "int8")
    assert verdict.share * profile.dense_flops["int8"].value == per_cycle * 1e9


@pytest.mark.parametrize("features", [set(), {"asimd"}])
def test_a_processor_without_integer_products_still_saves_memory(features: set[str]) -> None:
    verdict = check_scheme("int8", cpu_profile(features, num_cores=1), "native")
    assert (verdict.support, verdict.compute, verdict.nearest) == (EMULATED, "fp32", "none")
    assert verdict.kernel == "plain C++"


def test_what_an_engine_makes_from_a_16_bit_checkpoint() -> None:
    vllm, native = formats_of("vllm"), formats_of("native")
    assert vllm.online == {"none", "fp8", "fp8_w8a16", "bitsandbytes"}
    assert native.online == {"none", "fp8", "int8", "int8_g128", "int4", "int4_g128"}
    assert native.within_reach == native.online
    assert native.schemes == native.online | {"awq", "gptq", "gptq_int8"}
    assert vllm.within_reach == vllm.schemes
    assert (vllm.as_stored_on, native.as_stored_on) == (frozenset(), {"cpu"})
    # Quality suffers most from few bits in the embedding and the head.
    assert all(SCHEMES[ends].quality_bits == 8 for ends in native.ends.values())
    assert native.ends["int4"] == native.ends["int4_g128"] == native.ends["fp8"] == "int8"
    for formats in (vllm, native):
        assert formats.online | formats.ends.keys() <= formats.schemes <= SCHEMES.keys()
        assert formats.kv_dtypes <= KV_TYPES.keys()
    with pytest.raises(NumericsError, match="engine 'tgi' is unknown"):
        formats_of("tgi")


@pytest.mark.parametrize(
    ("check", "name", "device", "support", "nearest"),
    [
        (check_dtype, "bfloat16", "A10", NATIVE, None),
        (check_scheme, "none", "H100-SXM", NATIVE, None),
        (check_scheme, "int8", "H100-SXM", NATIVE, None),
        (check_scheme, "int4", "A10", NATIVE, None),
        (check_scheme, "fp8", "H100-SXM", NATIVE, None),
        (check_scheme, "fp8", "A10", EMULATED, "int8"),
        (check_kv_dtype, "auto", "A10", NATIVE, None),
        (check_kv_dtype, "int8", "A10", NATIVE, None),
        (check_kv_dtype, "fp8", "A10", UNSUPPORTED, "int8"),
        (check_kv_dtype, "fp8", "L4", NATIVE, None),
        (check_kv_dtype, "float32", "L4", UNSUPPORTED, "auto"),
    ],
)
def test_the_native_engine_on_gpus(
    catalog: Catalog,
    check: Callable[[str, AcceleratorProfile, str], Verdict],
    name: str,
    device: str,
    support: Support,
    nearest: str | None,
) -> None:
    verdict = check(name, catalog.find(device), "native")
    assert (verdict.support, verdict.nearest) == (support, nearest)
    assert bool(verdict.reason) == (support is not NATIVE)


@pytest.mark.parametrize(
    ("scheme", "device", "compute"),
    [
        ("int8", "A10", "int8"),
        ("fp8", "L4", "fp8"),
        ("fp8", "A10", "16bit"),
        ("int8_g128", "H100-SXM", "16bit"),
        ("int4", "H100-SXM", "16bit"),
        ("int4_g128", "A10", "16bit"),
        ("awq", "H100-SXM", "16bit"),
        ("gptq_int8", "H100-SXM", "16bit"),
        ("int4", "cpu-avx512-vnni", "int8"),
        ("awq", "cpu-avx512-vnni", "int8"),
    ],
)
def test_what_the_native_engine_computes_in(
    catalog: Catalog, scheme: str, device: str, compute: str
) -> None:
    """Weights in groups are decoded to the activations' 16 bits on a GPU."""
    assert check_scheme(scheme, catalog.find(device), "native").compute == compute


def test_smaller_groups_come_first_where_nothing_else_decides() -> None:
    names = [name for name in SCHEMES if name in formats_of("native").online]
    assert names == ["none", "fp8", "int8", "int8_g128", "int4", "int4_g128"]


@pytest.mark.parametrize(
    ("name", "is_compact", "num_bytes"),
    [
        ("auto", False, 2),
        ("float32", False, 4),
        ("bfloat16", False, 2),
        ("fp8", True, 1),
        ("int8", True, 1 + 4 / 128),
    ],
)
def test_types_of_the_kv_cache(name: str, is_compact: bool, num_bytes: float) -> None:
    kind = KV_TYPES[name]
    assert (kind.name, kind.is_compact) == (name, is_compact)
    assert kind.bytes_per_element(activation_bytes=2, head_dim=128) == num_bytes


def test_every_verdict_explains_itself(catalog: Catalog) -> None:
    for profile in catalog.profiles:
        for engine in ENGINES:
            found = verdicts(profile, engine)
            for (kind, name), verdict in found.items():
                where = f"{kind} {name} on {profile.name} in {engine}"
                assert bool(verdict.reason) == (verdict.support is not NATIVE), where
                assert bool(verdict.kernel) == (verdict.support is not UNSUPPORTED), where
                assert "\n" not in verdict.reason, where
                if verdict.nearest is not None:
                    assert verdict.nearest != name, where
                    assert found[kind, verdict.nearest].support is not UNSUPPORTED, where
                    assert verdict.support is not NATIVE, where
                if verdict.support is EMULATED and verdict.nearest is not None:
                    assert found[kind, verdict.nearest].support is NATIVE, where


def test_where_an_engine_runs_something_works(catalog: Catalog) -> None:
    for profile in catalog.profiles:
        for engine in ENGINES:
            found = verdicts(profile, engine)
            working = {kind for (kind, _), v in found.items() if v.support is not UNSUPPORTED}
            runs = check_engine(engine, profile).support is not UNSUPPORTED
            assert working == ({"scheme", "dtype", "kv"} if runs else set()), profile.name


def test_what_is_computed_has_a_rate(catalog: Catalog) -> None:
    for profile in catalog.profiles:
        for engine in ENGINES:
            for (kind, name), verdict in verdicts(profile, engine).items():
                if verdict.support is UNSUPPORTED or kind == "kv" or verdict.compute == "16bit":
                    continue
                assert verdict.compute in profile.dense_flops, (profile.name, kind, name)


@pytest.mark.parametrize(
    ("name", "bits", "quality", "compute"),
    [
        ("none", 16, 16, "16bit"),
        ("fp8", 8.01, 8, "fp8"),
        ("fp8_w8a16", 8.01, 8, "16bit"),
        ("int8", 8.01, 8, "int8"),
        ("int8_g128", 8 + 16 / 128, 8, "int8"),
        ("gptq_int8", 8.1875, 8, "16bit"),
        ("awq", 4.15625, 4, "16bit"),
        ("gptq", 4.15625, 4, "16bit"),
        ("bitsandbytes", 4.5, 4, "16bit"),
        ("mxfp4", 4.25, 4, "fp4"),
        ("nvfp4", 4.5, 4, "fp4"),
        ("int4", 4 + 16 / 32, 4, "int8"),
        ("int4_g128", 4 + 16 / 128, 4, "int8"),
    ],
)
def test_weight_schemes(name: str, bits: float, quality: int, compute: str) -> None:
    scheme = SCHEMES[name]
    assert scheme.name == name
    assert (scheme.bits_per_weight, scheme.quality_bits) == (bits, quality)
    assert scheme.compute == compute
    assert scheme.source


def test_emulation_computes_in_another_type(catalog: Catalog) -> None:
    assert check_scheme("fp8", catalog.find("A10"), "vllm").compute == "16bit"
    assert check_scheme("fp8", catalog.find("L4"), "vllm").compute == "fp8"
    assert check_scheme("nvfp4", catalog.find("GB10"), "vllm").compute == "16bit"


def test_every_list_of_rules_ends_without_a_condition() -> None:
    text = Path(profiles.numerics.__file__).with_name("numerics.yaml").read_text()
    for name, engine in read_yaml(text)["engines"].items():
        lists = {"runs_on": engine["runs_on"]}
        for kind in ("dtypes", "schemes", "kv_dtypes"):
            lists |= engine[kind]
        for item, rules in lists.items():
            assert set(rules[-1]) <= {"support", "kernel", "compute", "reason"}, (name, item)


def test_unknown_names_are_listed(catalog: Catalog) -> None:
    device = catalog.find("T4")
    with pytest.raises(NumericsError, match=r"scheme 'exl2' is unknown \(known: none, fp8, "):
        check_scheme("exl2", device, "vllm")
    with pytest.raises(NumericsError, match=r"dtype 'int4' is unknown \(known: float32, "):
        check_dtype("int4", device, "vllm")
    with pytest.raises(NumericsError, match=r"KV cache dtype 'fp4' is unknown \(known: auto, "):
        check_kv_dtype("fp4", device, "vllm")
    with pytest.raises(NumericsError, match=r"engine 'tgi' is unknown \(known: vllm, native\)"):
        check_engine("tgi", device)
