"""Settings: sources, bounds, spelling, and the fitting into the platform's time.

All configurations are gunicorn's own: `Config` objects, and files loaded by a real `Application`.
What a running gunicorn does with them is in contract/test_14_settings.py.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import sys
from pathlib import Path
from types import ModuleType

import pytest
from gunicorn.app.base import Application, BaseApplication
from gunicorn.config import Config

from gracefulworker import settings
from gracefulworker.settings import SettingsError


def config(**values):
    cfg = Config()
    for name, value in values.items():
        cfg.set(name, value)
    return cfg


def read(names=None, environ=None, **values):
    return settings.read(config(**values), environ or {}, names or {})


def refused(names=None, environ=None, **values):
    """The sentence that stops the start."""
    with pytest.raises(SettingsError) as error:
        read(names, environ, **values)
    sentence = str(error.value)
    assert "\n" not in sentence
    return sentence


def test_defaults():
    assert read() == settings.Settings(
        delay=5.0,
        finish=24.0,
        kill_after=None,
        period=30.0,
        first_byte=2.0,
        sigint=False,
        warnings=(),
    )


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        read().delay = 0.0


def test_table_names_each_setting_with_its_default_unit_and_meaning():
    rows = {name: (row.default, row.metadata["kind"].unit) for name, row in settings.TABLE.items()}
    assert rows == {
        "graceful_delay": (5.0, "s"),
        "graceful_kill_after": (None, "s"),
        "graceful_first_byte": (2.0, "s"),
        "graceful_idle": (0.0, "s"),
        "graceful_overlap": (10.0, "s"),
        "graceful_sigint": (False, ""),
        "graceful_quiet": (0.0, "s"),
        "graceful_report": (None, "file"),
        "graceful_on_lame_duck": (None, ""),
        "graceful_on_drained": (None, ""),
        "graceful_readiness_path": (None, "path"),
        "graceful_liveness_path": (None, "path"),
        "graceful_probe_bind": (None, "host:port"),
        "graceful_readiness_check": (None, ""),
        "graceful_unready": (False, ""),
        "graceful_probe_log": (False, ""),
        "graceful_warmup": ((), "path,..."),
    }
    assert all(row.metadata["kind"].meaning for row in settings.TABLE.values())


# -- probes and warm-up


@pytest.mark.parametrize("text", ["/ready", "/", " /a/b.c~d "])
def test_paths(text):
    assert read({"graceful_readiness_path": text}).readiness_path == text.strip()


@pytest.mark.contract(14)
@pytest.mark.parametrize("text", ["ready", "", "/a b", "/a?b", "/a#b", "/%61", "http://h/a"])
def test_bad_path_is_refused(text):
    assert refused({"graceful_liveness_path": text}) == (
        f"graceful_liveness_path = {text!r} in the config file is not a path: "
        "give one that begins with a slash, such as /ready"
    )


@pytest.mark.contract(14)
def test_one_path_for_both_is_refused():
    sentence = refused({"graceful_readiness_path": "/a"}, {"GRACEFUL_LIVENESS_PATH": "/a"})
    assert sentence.startswith("GRACEFUL_LIVENESS_PATH=/a in the environment is the readiness path")


@pytest.mark.contract(14)
def test_a_path_that_is_the_default_of_the_other_is_refused():
    names = {"graceful_readiness_path": "/live", "graceful_probe_bind": ":1"}
    assert refused(names).startswith("graceful_readiness_path = '/live' in the config file is")
    del names["graceful_probe_bind"]
    assert read(names).readiness_path == "/live"


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:8081", "127.0.0.1", 8081),
        (":8081", "0.0.0.0", 8081),
        ("localhost:0", "localhost", 0),
        ("[::1]:65535", "::1", 65535),
    ],
)
def test_addresses(text, host, port):
    address = read({}, {"GRACEFUL_PROBE_BIND": text}).probe_bind
    assert (address.host, address.port) == (host, port)
    assert str(address) == (text if text[0] != ":" else host + text)


@pytest.mark.contract(14)
@pytest.mark.parametrize("text", ["8081", "host", "host:", "h:70000", "::1:80", "unix:/a", "a b:1"])
def test_bad_address_is_refused(text):
    assert refused({}, {"GRACEFUL_PROBE_BIND": text}) == (
        f"GRACEFUL_PROBE_BIND={text} in the environment is not an address: "
        "give HOST:PORT, such as 0.0.0.0:8081"
    )


def test_warm_up_is_a_list_or_its_text():
    assert read({"graceful_warmup": ["/", "/login?next=a,b"]}).warmup == ("/", "/login?next=a,b")
    assert read({"graceful_warmup": "/"}).warmup == ("/",)
    assert read({}, {"GRACEFUL_WARMUP": "/, /login"}).warmup == ("/", "/login")
    assert read({"graceful_warmup": []}).warmup == ()


@pytest.mark.parametrize("value", ('["/", "/login?next=a,b"]', "['/', '/login?next=a,b',]"))
def test_warm_up_in_the_environment_may_be_written_as_in_the_file(value):
    assert read({}, {"GRACEFUL_WARMUP": value}).warmup == ("/", "/login?next=a,b")


@pytest.mark.contract(14)
@pytest.mark.parametrize("value", ("[", "['/'", '["login"]', "[1]", "[/]", "[__import__('os')]"))
def test_a_list_in_the_environment_that_is_none_is_refused(value):
    assert "is not a list of paths" in refused({}, {"GRACEFUL_WARMUP": value})


@pytest.mark.contract(14)
@pytest.mark.parametrize("value", ["login", ["login"], [1], 1, "/a,,/b"])
def test_bad_warm_up_is_refused(value):
    assert refused({"graceful_warmup": value}) == (
        f"graceful_warmup = {value!r} in the config file is not a list of paths that begin with a"
        " slash: give some, such as /,/login in the environment or "
        '["/", "/login"] in the config file'
    )


@pytest.mark.contract(14)
def test_a_check_is_a_function_of_the_config_file():
    def check():
        return True

    assert read({"graceful_readiness_check": check}).readiness_check is check
    assert refused({}, {"GRACEFUL_READINESS_CHECK": "check"}) == (
        "GRACEFUL_READINESS_CHECK=check in the environment is not a function: "
        "define one in the config file, with ()"
    )


@pytest.mark.contract(14)
def test_a_function_with_nearly_that_name_is_refused():
    wrong = "graceful_readyness_check"
    assert "did you mean graceful_readiness_check?" in refused({wrong: lambda: True})
    assert read({"graceful_exit": lambda: None}).warnings == ()  # the user's own


# -- sources and values


def test_config_file():
    names = {
        "graceful_delay": 3,
        "graceful_kill_after": 60,
        "graceful_first_byte": 0.5,
        "graceful_sigint": True,
    }
    read_back = read(names)
    assert (read_back.delay, read_back.kill_after, read_back.first_byte) == (3.0, 60.0, 0.5)
    assert read_back.sigint is True
    assert read_back.warnings == ()


def test_environment_wins_over_config_file():
    names = {"graceful_delay": 3, "graceful_first_byte": 4, "graceful_sigint": True}
    environ = {"GRACEFUL_DELAY": "7.5", "GRACEFUL_FIRST_BYTE": "", "GRACEFUL_SIGINT": "off"}
    read_back = read(names, environ)
    assert (read_back.delay, read_back.first_byte, read_back.sigint) == (7.5, 4.0, False)


@pytest.mark.parametrize("text", ["", " "])
def test_empty_variable_counts_as_unset(text):
    environ = {name.upper(): text for name in settings.TABLE} | {"GRACEFUL_OTHER": text}
    assert read({}, environ) == read()


def test_none_in_config_file_counts_as_unset():
    assert read(dict.fromkeys(settings.TABLE)) == read()


def test_number_as_text_in_config_file_is_read_like_gunicorns_own():
    # graceful_delay = os.environ.get("DELAY", "3")
    assert read({"graceful_delay": "3"}).delay == 3.0


@pytest.mark.parametrize("text", ["1", "true", "True", "YES", "on"])
def test_words_for_yes(text):
    assert read({}, {"GRACEFUL_SIGINT": text}).sigint is True


@pytest.mark.parametrize("text", ["0", "false", "False", "NO", "off"])
def test_words_for_no(text):
    assert read({"graceful_sigint": True}, {"GRACEFUL_SIGINT": text}).sigint is False


@pytest.mark.contract(14)
@pytest.mark.parametrize(
    "setting", ["graceful_delay", "graceful_kill_after", "graceful_first_byte"]
)
@pytest.mark.parametrize("text", ["soon", "5s", "-1", "nan", "inf", "-inf", "1e999", "true"])
def test_bad_time_in_environment_is_refused(setting, text):
    assert refused({}, {setting.upper(): text}) == (
        f"{setting.upper()}={text} in the environment is not a number of seconds: "
        "give one from 0 to 3600, such as 5 or 2.5"
    )


@pytest.mark.contract(14)
@pytest.mark.parametrize(
    "value", [True, False, "", "soon", -1, -0.5, float("nan"), float("inf"), 10**400, [5], b"5"]
)
def test_bad_time_in_config_file_is_refused(value):
    assert refused({"graceful_delay": value}) == (
        f"graceful_delay = {value!r} in the config file is not a number of seconds: "
        "give one from 0 to 3600, such as 5 or 2.5"
    )


@pytest.mark.contract(14)
@pytest.mark.parametrize(
    "setting", ["graceful_delay", "graceful_kill_after", "graceful_first_byte"]
)
def test_milliseconds_are_refused(setting):
    assert refused({setting: 5000}) == (
        f"{setting} = 5000 in the config file is more than 3600 s, so it is probably in "
        "milliseconds: give seconds"
    )
    assert refused({}, {setting.upper(): "3600.001"}).startswith(
        f"{setting.upper()}=3600.001 in the environment is more than 3600 s"
    )
    if setting != "graceful_delay":  # which would need a longer period than can be named
        assert read({setting: 3600})


@pytest.mark.contract(14)
@pytest.mark.parametrize(
    ("names", "environ", "start"),
    [
        ({"graceful_sigint": 2}, {}, "graceful_sigint = 2 in the config file is neither"),
        ({"graceful_sigint": "si"}, {}, "graceful_sigint = 'si' in the config file is neither"),
        ({}, {"GRACEFUL_SIGINT": "si"}, "GRACEFUL_SIGINT=si in the environment is neither"),
    ],
)
def test_bad_switch_is_refused(names, environ, start):
    sentence = refused(names, environ)
    assert sentence.startswith(start)
    assert sentence.endswith("give true or false, 1 or 0, yes or no, on or off")


@pytest.mark.contract(14)
@pytest.mark.parametrize("value", ["", " ", "/tmp/", 3, True, ["a"]])
def test_bad_file_name_is_refused(value):
    assert refused({"graceful_report": value}) == (
        f"graceful_report = {value!r} in the config file is not a file's name: "
        "give one such as /tmp/shutdown.json"
    )


def test_file_name():
    assert read({"graceful_report": Path("/tmp/a")}).report == "/tmp/a"
    assert read({"graceful_report": "a"}, {"GRACEFUL_REPORT": "/tmp/b c"}).report == "/tmp/b c"


@pytest.mark.contract(14)
def test_function_that_cannot_be_called_is_refused():
    assert refused({"graceful_on_lame_duck": 3}) == (
        "graceful_on_lame_duck = 3 in the config file is not a function: "
        "define one in the config file, with (server)"
    )
    assert refused({}, {"GRACEFUL_ON_DRAINED": "mine.hook"}) == (
        "GRACEFUL_ON_DRAINED=mine.hook in the environment is not a function: "
        "define one in the config file, with (server, report)"
    )


def test_functions():
    assert read({"graceful_on_drained": print}).on_drained is print


@pytest.mark.contract(14)
def test_misspelt_function_is_refused():
    """Others are helpers of the user's own."""
    assert "did you mean graceful_on_drained?" in refused({"graceful_on_drain": print})
    assert read({"graceful_helper": print, "grateful_timeout": print}).warnings == ()


# -- names


@pytest.mark.contract(14)
@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("graceful_delays", "graceful_delay"),
        ("graceful_killafter", "graceful_kill_after"),
        ("graceful_timout", "graceful_timeout"),
    ],
)
def test_unknown_name_with_our_prefix_is_refused(wrong, right):
    sentence = refused({wrong: 3})
    assert sentence.startswith(f"{wrong} = 3 in the config file is not a setting: did you mean ")
    assert f"did you mean {right}?" in sentence


@pytest.mark.contract(14)
def test_unknown_name_with_our_prefix_is_refused_however_unlike():
    sentence = refused({"graceful_zzz": 3})
    assert sentence.startswith("graceful_zzz = 3 in the config file is not a setting: ")


def test_gunicorns_own_name_with_our_prefix_is_known():
    assert read({"graceful_timeout": 30}) == read()


def test_parts_of_a_setting_are_helpers():
    """As they stand in the config file of the image tiangolo/meinheld-gunicorn-flask."""
    names: dict[str, object] = {
        "workers_per_core_str": "1",
        "use_max_workers": None,
        "max_workers_str": None,
        "web_concurrency_str": None,
        "host": "0.0.0.0",
        "port": "80",
        "bind_env": None,
        "use_loglevel": "info",
        "use_bind": "0.0.0.0:80",
        "cores": 4,
        "workers_per_core": 1.0,
        "default_web_concurrency": 4.0,
        "web_concurrency": 4,
        "accesslog_var": "-",
        "use_accesslog": "-",
        "errorlog_var": "-",
        "use_errorlog": "-",
        "graceful_timeout_str": "120",
        "timeout_str": "120",
        "keepalive_str": "5",
        "graceful_timeout": 120,
        "log_data": {},
    }
    environ = {"GRACEFUL_TIMEOUT": "120"}
    assert read(names, environ, graceful_timeout=120).warnings == ()


def test_helpers_of_a_setting_that_is_not_set_are_refused():
    assert "did you mean graceful_delay?" in refused({"graceful_delay_str": "5"})


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("grateful_timeout", "graceful_timeout"),
        ("gracefull_delay", "graceful_delay"),
        ("worker", "workers"),
        ("wrokers", "workers"),
        ("Workers", "workers"),
        ("timeouts", "timeout"),
        ("max_request", "max_requests"),
        ("log_level", "loglevel"),
        ("keep_alive", "keepalive"),
        ("access_log", "accesslog"),
        ("thread", "threads"),
        ("bind_", "bind"),
        ("preload", "preload_app"),
    ],
)
def test_near_miss_in_config_file_warns(wrong, right):
    assert read({wrong: 4}).warnings == (
        f"{wrong} in the config file is not a setting, gunicorn ignores it: did you mean {right}?",
    )
    # With the right one beside it, it is where the right one's value comes from.
    assert read({wrong: 4, right: 4}).warnings == ()


ORDINARY = [
    "port",
    "host",
    "hostname",
    "cores",
    "num_cpus",
    "log_dir",
    "log_file",
    "log_path",
    "app_name",
    "env_name",
    "env",
    "environment",
    "server_name",
    "address",
    "max_mem",
    "max_workers",
    "worker_id",
    "name",
    "path",
    "base_dir",
    "debug",
    "settings",
    "statsd_port",
    "redis_url",
    "default_timeout",
    "request_timeout",
    "i",
]


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_helper_name_is_silent(name):
    assert read({name: 4}).warnings == ()


def test_what_is_no_plain_value_is_silent():
    def graceful_stop(server):
        pass

    names = {
        "WORKER": 4,
        "GRACEFUL_STOP_AFTER": 4,
        "_worker": 4,
        "__builtins__": {},
        "worker": ModuleType("worker"),
        "thread": graceful_stop,
        "Workers": Config,
        "graceful_stop": graceful_stop,
        "graceful": ModuleType("graceful"),
        "cpu_count": multiprocessing.cpu_count,
    }
    assert read(names).warnings == ()


@pytest.mark.contract(14)
def test_unknown_variables_warn_once():
    environ = {
        "GRACEFUL_SHOP_SERVICE_HOST": "10.0.0.1",
        "GRACEFUL_SHOP_PORT": "tcp://10.0.0.1:80",
        "GRACEFUL_DELAYS": "3",
        "GRACEFULL_DELAY": "3",
        "GRATEFUL_DELAY": "3",
        "graceful_sigint": "1",
        "PATH": "/bin",
        "PORT": "80",
        "WORKERS": "4",
        "DELAY": "3",
    }
    assert read({}, environ).warnings == (
        "ignored in the environment: GRACEFULL_DELAY (did you mean GRACEFUL_DELAY?), "
        "GRACEFUL_DELAYS (did you mean GRACEFUL_DELAY?), GRACEFUL_SHOP_PORT, "
        "GRACEFUL_SHOP_SERVICE_HOST, GRATEFUL_DELAY (did you mean GRACEFUL_DELAY?), "
        "graceful_sigint (did you mean GRACEFUL_SIGINT?); Kubernetes itself sets such names for a "
        "Service called graceful-something, and enableServiceLinks: false in the pod's spec "
        "stops that",
    )


def test_near_miss_in_environment_alone_does_not_speak_of_kubernetes():
    assert read({}, {"GRATEFUL_DELAY": "3"}).warnings == (
        "ignored in the environment: GRATEFUL_DELAY (did you mean GRACEFUL_DELAY?)",
    )


def test_gunicorns_timeout_in_environment_warns_unless_it_has_had_its_effect():
    environ = {"GRACEFUL_TIMEOUT": "90"}
    [warning] = read({}, environ).warnings
    assert "GRACEFUL_TIMEOUT (gunicorn's: use --graceful-timeout or the config file)" in warning
    assert read({}, environ, graceful_timeout=90).warnings == ()


# -- fitting


@pytest.mark.parametrize(
    ("names", "graceful_timeout", "finish", "period", "plan"),
    [
        (
            {},
            30,
            24.0,
            30.0,
            "shutdown plan: accept 5.0 s, finish within 24.0 s, exit by 29.0 s of 30.0 s",
        ),
        (
            {},
            120,
            120.0,
            None,
            "shutdown plan: accept 5.0 s, finish within 120.0 s, exit by 125.0 s: "
            "needs terminationGracePeriodSeconds of 126 or more",
        ),
        (
            {"graceful_delay": 0.5},
            10,
            10.0,
            None,
            "shutdown plan: accept 0.5 s, finish within 10.0 s, exit by 10.5 s: "
            "needs terminationGracePeriodSeconds of 12 or more",
        ),
        (
            {"graceful_delay": 0},
            30,
            29.0,
            30.0,
            "shutdown plan: accept 0.0 s, finish within 29.0 s, exit by 29.0 s of 30.0 s",
        ),
        (
            {"graceful_delay": 27.5},
            30,
            1.5,
            30.0,
            "shutdown plan: accept 27.5 s, finish within 1.5 s, exit by 29.0 s of 30.0 s",
        ),
        (
            {"graceful_kill_after": 60},
            30,
            30.0,
            60.0,
            "shutdown plan: accept 5.0 s, finish within 30.0 s, exit by 35.0 s of 60.0 s",
        ),
        (
            {"graceful_kill_after": 20},
            30,
            14.0,
            20.0,
            "shutdown plan: accept 5.0 s, finish within 14.0 s, exit by 19.0 s of 20.0 s",
        ),
        (
            {"graceful_kill_after": 126},
            120,
            120.0,
            126.0,
            "shutdown plan: accept 5.0 s, finish within 120.0 s, exit by 125.0 s of 126.0 s",
        ),
        (
            {"graceful_kill_after": 20},
            0,
            0.0,
            20.0,
            "shutdown plan: accept 5.0 s, finish within 0.0 s, exit by 5.0 s of 20.0 s",
        ),
    ],
)
def test_fitted_silently(names, graceful_timeout, finish, period, plan):
    fitted = read(names, graceful_timeout=graceful_timeout)
    assert (fitted.finish, fitted.period) == (finish, period)
    assert fitted.plan() == plan
    assert fitted.warnings == ()


def test_cut_of_a_chosen_timeout_warns():
    fitted = read({}, {"GRACEFUL_KILL_AFTER": "30"}, graceful_timeout=120)
    assert (fitted.finish, fitted.period) == (24.0, 30.0)
    assert fitted.warnings == (
        "graceful_timeout = 120 is cut to 24 s, because GRACEFUL_KILL_AFTER=30 in the environment "
        "has to hold the delay of 5 s and 1 s for the exit too: raise graceful_kill_after (and "
        "the platform's own figure) to 126, or lower graceful_timeout",
    )


@pytest.mark.parametrize("delay", [28, 29, 30, 100])
def test_delay_that_fills_the_assumed_period_warns_and_nothing_is_assumed(delay):
    fitted = read({"graceful_delay": delay})
    assert (fitted.finish, fitted.period) == (30.0, None)
    assert fitted.warnings == (
        f"a graceful_delay of {delay} s leaves no time to finish requests in the 30 s that "
        "Kubernetes gives by default: lower it, or set terminationGracePeriodSeconds to "
        f"{delay + 31} or more and graceful_kill_after to the same",
    )
    assert fitted.plan().endswith(f"needs terminationGracePeriodSeconds of {delay + 31} or more")


@pytest.mark.contract(14)
@pytest.mark.parametrize("graceful_timeout", [30, 120])
def test_kill_after_that_leaves_no_time_is_refused(graceful_timeout):
    assert refused({"graceful_kill_after": 6}, graceful_timeout=graceful_timeout) == (
        "graceful_kill_after = 6 in the config file leaves no time to finish requests after the "
        "delay of 5 s and 1 s for the exit: raise it (and the platform's own figure) above 6 s, "
        "or lower graceful_delay below 5 s"
    )
    assert read({"graceful_kill_after": 6.5}).finish == 0.5


@pytest.mark.contract(14)
def test_kill_after_below_the_margin_cannot_be_cured_by_the_delay():
    sentence = refused({}, {"GRACEFUL_KILL_AFTER": "0"})
    assert sentence.startswith("GRACEFUL_KILL_AFTER=0 in the environment leaves no time")
    assert sentence.endswith("raise it (and the platform's own figure) above 6 s")


@pytest.mark.contract(14)
def test_kill_after_is_not_saved_by_float_arithmetic():
    assert 4.4 - 3.4 - 1 > 0
    refused({"graceful_kill_after": 4.4, "graceful_delay": 3.4})


def test_reload_has_no_delay():
    fitted = read({"graceful_delay": 20}, reload=True)
    assert (fitted.delay, fitted.finish, fitted.period) == (0.0, 29.0, 30.0)
    assert fitted.plan() == (
        "shutdown plan: accept 0.0 s, finish within 29.0 s, exit by 29.0 s of 30.0 s "
        "(no delay with --reload)"
    )
    assert read(reload=True, graceful_timeout=60).plan() == (
        "shutdown plan: accept 0.0 s, finish within 60.0 s, exit by 60.0 s: "
        "needs terminationGracePeriodSeconds of 61 or more (no delay with --reload)"
    )


# -- the config file, as gunicorn itself loads it


class Service(Application):
    def init(self, parser, opts, args):
        pass


@pytest.fixture
def command_line(monkeypatch, tmp_path):
    """Sets gunicorn's command line, in a process whose modules and paths are put back after."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delenv("GUNICORN_CMD_ARGS", raising=False)
    # Setting each before deleting it makes monkeypatch delete what the test leaves there.
    for name in ("__config__", "service_conf"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
        monkeypatch.delitem(sys.modules, name)

    def set_arguments(*arguments):
        monkeypatch.setattr(sys, "argv", ["gunicorn", *arguments])

    return set_arguments


def test_names_of_a_file_are_read_anew_on_hup(command_line, tmp_path):
    path = tmp_path / "service_conf.py"
    path.write_text("graceful_delay = 3\nconfig = 'production'\n")
    command_line("-c", str(path))
    service = Service()
    assert settings.read(service.cfg, {}).delay == 3.0

    path.write_text("graceful_delays = 4\n\n")
    service.reload()
    assert "graceful_delay" not in settings.config_names(service.cfg)
    with pytest.raises(SettingsError, match="did you mean graceful_delay"):
        settings.read(service.cfg, {})


def test_names_of_a_module_are_not_those_of_another_applications_file(command_line, tmp_path):
    other = tmp_path / "other.py"
    other.write_text("graceful_delay = 3\n")
    command_line("-c", f"file:{other}")
    assert settings.read(Service().cfg, {}).delay == 3.0

    (tmp_path / "service_conf.py").write_text("graceful_first_byte = 4\n")
    command_line("-c", "python:service_conf")
    read_back = settings.read(Service().cfg, {})
    assert (read_back.delay, read_back.first_byte) == (5.0, 4.0)


def test_embedded_application_has_no_config_file(command_line):
    class Embedded(BaseApplication):
        def load_config(self):
            self.cfg.set("graceful_timeout", 60)

    cfg = Embedded().cfg
    assert settings.config_names(cfg) == {}
    read_back = settings.read(cfg, {"GRACEFUL_DELAY": "3"})
    assert (read_back.delay, read_back.finish) == (3.0, 60.0)


@pytest.mark.parametrize("name", ("graceful_unready", "graceful_readiness_check"))
def test_what_no_probe_asks_for_is_named(name):
    value = True if name == "graceful_unready" else bool
    (warning,) = read({name: value}).warnings
    assert warning.startswith(f"{name} has no effect: ")
    assert not read({name: value, "graceful_readiness_path": "/ready"}).warnings
    assert not read({name: value, "graceful_probe_bind": "127.0.0.1:8081"}).warnings
