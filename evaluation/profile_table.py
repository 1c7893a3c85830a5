"""A profile for people: tables on a terminal, Markdown when piped."""

from __future__ import annotations

from typing import Any

from evaluation.table import console, new_table, number, print_table


def show(found: dict[str, Any]) -> None:
    """Print all figures of `evaluation.edge_profile`."""
    out = console()
    environment = found["environment"]
    out.print(
        f"{found['model']['name']} {found['model']['version']} on "
        f"{environment['processor'] or environment['machine']}; "
        f"native loops: {environment['native_loops'] or 'none'}; {found['bands']} bands ({found['scene']}), "
        f"quality {found['quality']:g}",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    table = new_table(
        out, "Graphs, one thread", ["graph", "parameters", "kMAC/\nsample", "GMAC/s", "share of\nGEMM peak"]
    )
    for one in found["graphs"]:
        share = f"{100 * one['share_of_gemm_peak']:.0f} %"
        table.add_row(
            one["name"],
            f"{one['parameters']:,}",
            number(one["kmac_per_sample"], 3),
            number(one["gmac_per_s"], 1),
            share,
        )
    print_table(out, table)
    table = new_table(out, "Encoding", ["picture", "threads", "Msamples/s", "least", "most", "bits/\nsample"])
    for one in found["speed"]:
        rate = one["msamples_per_s"]
        table.add_row(
            f"{one['size_px']} x {one['size_px']} px", str(one["threads"]), number(rate["median"], 2),
            number(rate["low"], 2), number(rate["high"], 2), number(one["bits_per_sample"], 3),
        )  # fmt: skip
    print_table(out, table)
    table = new_table(out, "Time per stage", ["stage", "share"])
    for stage, share in found["stages"].items():
        table.add_row(stage, f"{100 * share:.1f} %")
    print_table(out, table)
    table = new_table(out, "Peak memory", ["scene", "raw MB", "peak MB", "of it before\nthe scene"])
    for one in found["memory"]:
        table.add_row(
            f"{one['height_px']} x {one['width_px']} px", number(one["scene_mb"], 0), number(one["peak_rss_mb"], 0),
            number(one["rss_before_mb"], 0),
        )  # fmt: skip
    print_table(out, table)
    for line in sentences(found):
        out.print(line, markup=False, soft_wrap=True)


def sentences(found: dict[str, Any]) -> list[str]:
    """What needs no table."""
    cold, eight, install = found["cold_start"], found["int8"], found["install"]
    peak = found["gemm_peak_gmac_per_s"]
    said = [
        f"Cold start to a coded patch of 128 x 128 px: {cold['total_s']:.2f} s (imports {cold['import_s']:.2f}, bundle "
        f"and self-test {cold['load_s']:.2f}, the patch {cold['first_s']:.2f}).",
        f"The encoder's networks take {found['network']['kmac_per_sample']:.2f} kMAC a sample (counted while encoding "
        f"{found['network']['size_px']} x {found['network']['size_px']} px); this core's float32 matrix product does "
        f"{peak:.0f} GMAC/s: were nothing else to do, {peak / found['network']['kmac_per_sample']:.0f} Msamples/s.",
    ]
    if eight["native_8_bit_msamples_per_s"] is not None:
        same = "the same bytes" if eight["same_bytes"] else "other bytes: floats round differently"
        said.append(
            f"In 8 bits, natively: {eight['native_8_bit_msamples_per_s']:.1f} Msamples/s; in float32, in onnxruntime "
            f"and numpy: {eight['float32_msamples_per_s']:.1f}; {same}."
        )
    else:
        said.append(f"Native loops: none; in float32 {eight['float32_msamples_per_s']:.1f} Msamples/s.")
    graph = eight["encoder_onnx_in_onnxruntime"]
    if "missing" in graph:
        said.append(f"encoder.onnx quantised by onnxruntime: not measured; {graph['missing']}.")
    else:
        said.append(
            f"encoder.onnx in onnxruntime: {graph['float32_ms']:.2f} ms a tile of 8 planes in float32, "
            f"{graph['int8_ms']:.2f} ms as onnxruntime quantises it."
        )
    energy = found["energy"]
    if "missing" in energy:
        said.append(f"Energy: not measured; {energy['missing']}.")
    else:
        said.append(f"Energy: {energy['nj_per_sample']:.0f} nJ a sample beyond idling ({energy['watts']:.1f} W).")
    largest = ", ".join(f"{name} {size:.0f}" for name, size in list(install["distributions_mb"].items())[:3])
    said.append(f"The edge installation takes {install['total_mb']:.0f} MB ({largest} MB, …).")
    return said
