import hmac

import pytest

from reactune.cli import main
from reactune.errors import DataError
from reactune.service.api_keys import all_keys, make_key, recognise, revoke_key
from reactune.store.database import create_store
from serving_fixtures import (
    NOON,
)


def test_the_database_holds_no_key_and_a_right_one_is_recognised(engine):
    tokens = [make_key(engine, f"app {n}", ["app", "read"], now=NOON) for n in range(3)]
    keys = {key.key_id: key for key in all_keys(engine)}
    with engine.connect() as connection:
        stored = str(connection.exec_driver_sql("SELECT * FROM api_keys").all())
    for token in tokens:
        key_id, secret = token.split("_", 2)[1:]
        assert secret not in stored
        assert recognise(token, keys).key_id == key_id
        assert recognise(token[:-1] + ("a" if token[-1] != "a" else "b"), keys) is None
        assert recognise(f"rt_00000000_{secret}", keys) is None
    for wrong in ("", "rt_", tokens[0] + "x", "Bearer"):
        assert recognise(wrong, keys) is None
    revoke_key(engine, tokens[0].split("_")[1], now=NOON)
    keys = {key.key_id: key for key in all_keys(engine)}
    assert recognise(tokens[0], keys) is None
    assert recognise(tokens[1], keys).scopes == {"app", "read"}


def test_secrets_are_compared_in_constant_time(engine, monkeypatch):
    token = make_key(engine, "app", ["app"], now=NOON)
    keys = {key.key_id: key for key in all_keys(engine)}
    compared, compare = [], hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append(1) or compare(a, b))
    for of in (token, token[:-1] + "-", f"rt_00000000_{token.split('_', 2)[2]}"):
        recognise(of, keys)
    assert len(compared) == 3


@pytest.mark.parametrize(("name", "scopes"), [("", ["app"]), ("x", []), ("x", ["root"])])
def test_a_key_without_name_or_known_scope_is_not_made(engine, name, scopes):
    with pytest.raises(DataError, match="give a name"):
        make_key(engine, name, scopes, now=NOON)
    with pytest.raises(DataError, match="no key"):
        revoke_key(engine, "nobody's", now=NOON)


def test_keys_are_made_listed_and_revoked_at_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REACTUNE_KEY", "k" * 32)
    create_store(f"sqlite:///{tmp_path / 'reactune.db'}").dispose()

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        return ended.value.code, capsys.readouterr().out.strip()

    code, token = run("keys", "create", "phone app", "--scope", "app", "--scope", "read")
    assert (code, token[:3]) == (0, "rt_")
    key_id = token.split("_")[1]
    code, listed = run("keys", "list")
    assert (key_id in listed, "app,read" in listed, "valid" in listed) == (True, True, True)
    assert token.split("_", 2)[2] not in listed
    assert run("keys", "revoke", key_id) == (0, f"revoked {key_id}")
    assert "revoked" in run("keys", "list")[1]
    assert run("keys", "revoke", "nobody's")[0] == 1
