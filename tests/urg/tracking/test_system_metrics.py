import threading

from urg.tracking.system_metrics import sample, start_sampling


def test_sample_has_plausible_values():
    values = sample()
    assert 0 <= values["system/cpu_utilization_percentage"] <= 100
    assert 0 < values["system/system_memory_usage_percentage"] <= 100
    assert values["system/process_memory_megabytes"] > 5


def test_sampling_goes_on_until_it_is_stopped():
    stop, thrice, got = threading.Event(), threading.Event(), []

    def log(values):
        got.append(values)
        if len(got) == 3:
            thrice.set()

    thread = start_sampling(log, 0.01, stop)
    assert thrice.wait(30)
    stop.set()
    thread.join(30)
    assert not thread.is_alive()
    assert all(values.keys() == got[0].keys() for values in got)
