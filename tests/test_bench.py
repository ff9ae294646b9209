"""Does the benchmark's page hold: what callers learn, and its picture?"""

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

from harness.programs import built

sys.path.insert(0, str(Path(__file__).parent / "bench"))
import picture

ANSWER, NOTHING = ["answer"], []
# What callers read of each fate of their target; the timeout they ask for is 2 s.
SWITCHBOARD = {
    "absent": ["offline"],
    "not-allowed": ["denied"],
    "dies-before-reading": ["lost"],
    "dies-after-reading": ["lost"],
    "stays-silent": ["timed_out"],
    "answers-late": ["timed_out"],
    "answers-twice": ANSWER,
    # The caller's own node lives; it is in doubt about the other one for longer than the call may take.
    "server-killed": ["timed_out"],
}
NATS = {
    "absent": ["503"],
    "not-allowed": ["-ERR"],
    "dies-before-reading": NOTHING,
    "dies-after-reading": NOTHING,
    "stays-silent": NOTHING,
    "answers-late": ANSWER,
    "answers-twice": ANSWER * 2,
    "server-killed": ["cut off"],
}
TIMEOUT_MS = 2_000
EARLIEST_MS = {"stays-silent": TIMEOUT_MS, "answers-late": TIMEOUT_MS}


def test_what_a_caller_learns(tmp_path):
    file = tmp_path / "learned.json"
    systems = {"switchboard-2": SWITCHBOARD, "nats-users": NATS}
    bench = [built("switchboard-bench"), "run", "--learns", "--systems", ",".join(systems), "--json", file]
    subprocess.run(bench, check=True, timeout=120)
    learned = json.loads(file.read_text())
    for system, promised in systems.items():
        heard = {it["fate"]: it["heard"] for it in learned if it["system"] == system}
        assert {fate: [it["what"] for it in each] for fate, each in heard.items()} == promised, system
        for fate, each in heard.items():
            assert all(it["after_ms"] >= EARLIEST_MS.get(fate, 0) for it in each), (system, fate, each)


def test_the_picture_shows_what_was_measured():
    latency = {"p50_ms": 0.5, "p99_ms": 2.0}
    load = {"server_cpu_us_a_call": {"nats-server": 40.0, "up": 60.0}, "latency": latency, "wake_p99_ms": 0.1}
    idle = {"server_kib_a_connection": {"mosquitto": 2.5}, "server_cpu_ms_a_connect": {"mosquitto": 0.0}}
    samples = [
        {"system": "up", "scenario": "2000/s@100", "figures": {"load": load}},
        {"system": "up", "scenario": "2000/s@100", "figures": {"load": load | {"server_cpu_us_a_call": {"up": 1300.0}}}},
        {"system": "chain", "scenario": "2000/s@100", "figures": None},
        {"system": "mosquitto", "scenario": "idle@19000", "figures": {"idle": idle}},
    ]
    drawn = picture.draw({"machine": "2 cores of <these>", "samples": samples})
    texts = [text.text for text in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
    assert {"2000/s@100", "up", "700", "0.5 – 2", "idle@19000", "mosquitto", "2.5", "2 cores of <these>"} <= set(texts)
    assert "chain" not in texts, "it has failed, and has no figures"
