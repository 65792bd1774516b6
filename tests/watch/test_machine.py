"""The load of the machine, and what nvidia-smi prints."""

from fledgling.watch.machine import MachineLoad, parse_gpu


def test_the_load_of_this_machine_is_plausible():
    load = MachineLoad()
    sum(range(300_000))
    values = load.read()
    assert values["cpu"] is None or 0 <= values["cpu"] <= 1
    assert values["memory_total"] is None or 0 < values["memory_free"] < values["memory_total"]
    assert values["cores"] >= 1 and values["load"] >= 0


def test_a_line_of_nvidia_smi_is_read_also_where_a_value_is_missing():
    gpu = parse_gpu("NVIDIA H100 80GB HBM3, 97, 40960, 81559, 512.30, 61")
    assert gpu == {"name": "NVIDIA H100 80GB HBM3", "busy": 0.97, "memory_used": 40960 * 2**20,
                   "memory_total": 81559 * 2**20, "watts": 512.3, "celsius": 61.0}  # fmt: skip
    assert parse_gpu("A, [N/A], 1, 2, [N/A], 3")["busy"] is None
    assert parse_gpu("no devices were found") is None
