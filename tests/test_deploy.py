"""The files in deploy/, as far as they can be checked without a cluster: they parse, Ray's schema accepts its own, and
their versions, paths, ports, variables and commands agree with each other and with the code."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.__main__ import build_parser
from harness.spec.grid import open_grid

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
README = (DEPLOY / "README.md").read_text()
CONSTRAINTS = dict(re.findall(r"^([\w-]+)==([\w.]+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
MLFLOW_PORT, DASHBOARD_PORT, GCS_PORT = 5000, 8265, 6379
STORE, CACHE = "/shared/codetr", "/shared/cache"


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


CLUSTER = documents("ray-cluster.yaml")[0]
RAYJOB = documents("rayjob.yaml")[0]
COMPOSE = documents("compose.yaml")[0]
MANIFESTS = {(document["kind"], document["metadata"]["name"]): document for document in documents("mlflow.yaml")}
JOB_ENVIRONMENT = yaml.safe_load(RAYJOB["spec"]["runtimeEnvYAML"])["env_vars"]


def cluster_environment() -> dict[str, str]:
    options = [option.split(maxsplit=1) for option in CLUSTER["docker"]["run_options"]]
    return dict(words[1].split("=", 1) for words in options if words[0] == "--env")


def pods() -> dict[str, Any]:
    """Every pod template by a name of ours."""
    cluster = RAYJOB["spec"]["rayClusterSpec"]
    found = {"ray head": cluster["headGroupSpec"]["template"]["spec"]}
    found |= {f"ray {group['groupName']}": group["template"]["spec"] for group in cluster["workerGroupSpecs"]}
    found |= {
        name: MANIFESTS[kind, name]["spec"]["template"]["spec"]
        for kind, name in (("StatefulSet", "postgres"), ("Deployment", "mlflow"))
    }
    return found


# ---- the image


def instructions() -> list[tuple[str, str]]:
    lines = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE)).splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def test_the_image_copies_what_exists_and_the_build_context_has_it():
    copied = [word for name, rest in instructions() if name == "COPY" for word in shlex.split(rest)[:-1]]
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {"harness", "model", "csrc", "ablations", "constraints.txt", "pyproject.toml"} <= set(copied)
    for path in copied:
        assert (ROOT / path).exists(), f"COPY {path}"
        assert path in allowed, f".dockerignore leaves {path} out"


def test_the_image_installs_the_pinned_versions_torch_first():
    installs = [rest for name, rest in instructions() if name == "RUN" and "pip install" in rest]
    assert all("-c constraints.txt" in line for line in installs)
    assert installs[0].endswith("torch") and "--index-url ${TORCH_INDEX}" in installs[0]
    extras = re.search(r'"\.\[([\w,]+)\]"', installs[-1])
    known = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert extras and set(extras[1].split(",")) <= set(known)
    assert {"backbones", "photos", "postgres", "search"} <= set(extras[1].split(","))
    assert "==" not in DOCKERFILE  # versions stand in constraints.txt alone


def test_the_image_has_a_compiler_and_does_not_run_as_root():
    names = [name for name, _ in instructions()]
    packages = next(rest for name, rest in instructions() if "apt-get install" in rest)
    assert {"g++", "git", "rsync", "wget"} <= set(packages.split())
    user = next(rest for name, rest in instructions() if name == "USER")
    assert user not in ("root", "0") and f"--uid 1000 {user}" in DOCKERFILE
    assert names.index("USER") > max(index for index, name in enumerate(names) if name == "RUN")


def test_python_is_one_that_the_package_takes():
    version = re.search(r"PYTHON_VERSION=(\d+)\.(\d+)", DOCKERFILE)
    least = re.search(r'requires-python = ">=(\d+)\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    assert version and least and tuple(map(int, version.groups())) >= tuple(map(int, least.groups()))


# ---- Ray


@pytest.mark.skipif(find_spec("jsonschema") is None, reason="jsonschema is not installed")
def test_rays_schema_accepts_the_cluster():
    import jsonschema

    spec = find_spec("ray")
    assert spec and spec.origin
    schema = json.loads((Path(spec.origin).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(CLUSTER, schema)
    with pytest.raises(jsonschema.ValidationError):  # it does look
        jsonschema.validate({**CLUSTER, "max_worker": 2}, schema)


def test_the_cluster_has_a_head_without_gpus_and_workers_with_all():
    assert CLUSTER["max_workers"] == len(CLUSTER["provider"]["worker_ips"])
    assert CLUSTER["provider"]["head_ip"] not in CLUSTER["provider"]["worker_ips"]
    head = CLUSTER["head_start_ray_commands"][-1]
    assert f"--port={GCS_PORT}" in head and f"--dashboard-port={DASHBOARD_PORT}" in head and "--num-gpus=0" in head
    assert CLUSTER["worker_start_ray_commands"][-1] == f"ray start --address=$RAY_HEAD_IP:{GCS_PORT}"
    assert "--gpus all" in CLUSTER["docker"]["worker_run_options"]
    environment = cluster_environment()
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_AUTH_TOKEN_PATH"] in README
    assert environment["MLFLOW_TRACKING_URI"] == f"http://{CLUSTER['provider']['head_ip']}:{MLFLOW_PORT}"


def test_the_ray_job_has_what_kuberay_requires():
    assert (RAYJOB["apiVersion"], RAYJOB["kind"]) == ("ray.io/v1", "RayJob")
    spec = RAYJOB["spec"]
    assert spec["shutdownAfterJobFinishes"] is True and spec["entrypoint"]
    cluster = spec["rayClusterSpec"]
    assert cluster["rayVersion"] == CONSTRAINTS["ray"]
    assert cluster["authOptions"] == {"mode": "token", "secretName": "codetr-ray"}
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        [container] = group["template"]["spec"]["containers"]
        assert container["name"] and container["image"] and container["resources"]["limits"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-gpus"] == "0"
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        [container] = group["template"]["spec"]["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    ports = {port["containerPort"] for port in cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["ports"]}
    assert ports == {GCS_PORT, DASHBOARD_PORT}


def test_a_worker_holds_a_trial_of_the_preset():
    words = shlex.split(RAYJOB["spec"]["entrypoint"])
    args = build_parser().parse_args(words[1:])
    file = ROOT / Path(args.files[0]).relative_to("/opt/codetr")  # the image's WORKDIR
    assert "WORKDIR /opt/codetr" in DOCKERFILE and "COPY ablations ./ablations" in DOCKERFILE
    grid = open_grid(file, args.preset, args.overrides, data=args.data, require_data=False)
    [group] = RAYJOB["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    for trial in grid.trials:
        assert trial.runtime.cpus_per_trial <= int(limits["cpu"])
        assert trial.runtime.gpus_per_trial <= int(limits["nvidia.com/gpu"])


# ---- MLflow and PostgreSQL


def server_options(command: list[str]) -> dict[str, str]:
    assert command[:2] == ["mlflow", "server"]
    return dict(option.removeprefix("--").split("=", 1) for option in command[2:])


COMMANDS = {
    "compose": COMPOSE["services"]["mlflow"]["command"],
    "kubernetes": pods()["mlflow"]["containers"][0]["command"],
}


@pytest.mark.parametrize("where", COMMANDS)
def test_the_tracking_server_is_reached_by_its_name_and_serves_artifacts(where):
    options = server_options(COMMANDS[where])
    assert options["host"] == "0.0.0.0" and options["port"] == str(MLFLOW_PORT)
    hosts = options["allowed-hosts"].split(",")
    assert {f"localhost:{MLFLOW_PORT}", f"mlflow:{MLFLOW_PORT}"} <= set(hosts) and "*" not in options["allowed-hosts"]
    assert options["artifacts-destination"].startswith("/")


def test_the_tracking_server_knows_its_options():
    from mlflow.cli import server

    known = {name for parameter in server.params for name in parameter.opts}
    variables = {parameter.envvar for parameter in server.params}
    for command in COMMANDS.values():
        assert {f"--{name}" for name in server_options(command)} <= known
    assert "MLFLOW_BACKEND_STORE_URI" in variables


def test_compose_keeps_the_data_and_waits_for_the_database():
    postgres, mlflow = COMPOSE["services"]["postgres"], COMPOSE["services"]["mlflow"]
    mounted = [volume.split(":")[0] for service in (postgres, mlflow) for volume in service["volumes"]]
    assert set(mounted) == set(COMPOSE["volumes"])
    assert postgres["healthcheck"]["test"] and "/health" in mlflow["healthcheck"]["test"][-1]
    assert mlflow["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert mlflow["ports"] == [f"{MLFLOW_PORT}:{MLFLOW_PORT}"]
    destination = server_options(mlflow["command"])["artifacts-destination"]
    assert any(volume.split(":")[1] == destination for volume in mlflow["volumes"])
    assert f"mkdir --parents /shared {destination}" in DOCKERFILE  # a fresh volume takes its owner from the image


def test_both_databases_are_opened_the_same_way_by_a_driver_that_is_installed():
    container = pods()["mlflow"]["containers"][0]
    on_kubernetes = next(entry for entry in container["env"] if entry["name"] == "MLFLOW_BACKEND_STORE_URI")["value"]
    in_compose = COMPOSE["services"]["mlflow"]["environment"]["MLFLOW_BACKEND_STORE_URI"]
    assert re.sub(r"\$[({]\w+[)}]", "", on_kubernetes) == re.sub(r"\$[({]\w+[)}]", "", in_compose)
    scheme, user, host, port, database = re.fullmatch(r"(.+)://(\w+):.+@(\w+):(\d+)/(\w+)", in_compose).groups()
    assert scheme == "postgresql+psycopg2" and "psycopg2-binary" in CONSTRAINTS
    assert (host, port) == ("postgres", "5432") and ("Service", host) in MANIFESTS and host in COMPOSE["services"]
    told = COMPOSE["services"]["postgres"]["environment"]
    assert (told["POSTGRES_USER"], told["POSTGRES_DB"]) == (user, database)
    env = {entry["name"]: entry.get("value") for entry in pods()["postgres"]["containers"][0]["env"]}
    assert (env["POSTGRES_USER"], env["POSTGRES_DB"]) == (user, database)
    images = {COMPOSE["services"]["postgres"]["image"], pods()["postgres"]["containers"][0]["image"]}
    assert len(images) == 1


def test_manifests_find_each_other():
    for (kind, name), document in MANIFESTS.items():
        assert document["apiVersion"] == {"StatefulSet": "apps/v1", "Deployment": "apps/v1"}.get(kind, "v1")
        if kind in ("StatefulSet", "Deployment"):
            labels = document["spec"]["template"]["metadata"]["labels"]
            assert document["spec"]["selector"]["matchLabels"] == labels
            service = MANIFESTS["Service", name]["spec"]
            assert service["selector"] == labels
            port = document["spec"]["template"]["spec"]["containers"][0]["ports"][0]["containerPort"]
            assert service["ports"] == [{"port": port}]
    probe = pods()["mlflow"]["containers"][0]["startupProbe"]["httpGet"]
    assert (probe["path"], probe["port"]) == ("/health", MLFLOW_PORT)


# ---- what they share


@pytest.mark.parametrize("name", pods())
def test_every_mount_has_its_volume(name):
    pod = pods()[name]
    given = {volume["name"] for volume in pod.get("volumes", [])}
    if name == "postgres":
        given |= {claim["metadata"]["name"] for claim in MANIFESTS["StatefulSet", name]["spec"]["volumeClaimTemplates"]}
    for container in pod["containers"]:
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert set(mounts) <= given
        assert mounts.get("shared", "/shared") == "/shared"
    for volume in pod.get("volumes", []):
        if "persistentVolumeClaim" in volume:
            assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in MANIFESTS


def test_paths_and_servers_agree():
    for environment in (cluster_environment(), JOB_ENVIRONMENT):
        assert (environment["CODETR_STORE"], environment["CODETR_CACHE"]) == (STORE, CACHE)
    assert "--volume /shared:/shared" in CLUSTER["docker"]["run_options"]
    assert JOB_ENVIRONMENT["MLFLOW_TRACKING_URI"] == f"http://mlflow:{MLFLOW_PORT}"
    assert f"CODETR_STORE={STORE}" in README and cluster_environment()["MLFLOW_TRACKING_URI"] in README


def test_one_image_and_one_commit():
    images = {
        container["image"] for name, pod in pods().items() if name != "postgres" for container in pod["containers"]
    }
    assert images == {CLUSTER["docker"]["image"]} == {"registry.example.org/codetr:@COMMIT@"}
    assert JOB_ENVIRONMENT["CODETR_COMMIT"] == "@COMMIT@"
    filled = (DEPLOY / "rayjob.yaml").read_text().replace("@COMMIT@", "0123abc")  # as the README's sed does
    assert yaml.safe_load(yaml.safe_load(filled)["spec"]["runtimeEnvYAML"])["env_vars"]["CODETR_COMMIT"] == "0123abc"


def secrets(node: Any) -> Iterator[tuple[str, str]]:
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        if key == "secretKeyRef":
            yield value["name"], value["key"]
        elif key == "authOptions":
            yield value["secretName"], "auth_token"
        yield from secrets(value)


def test_every_secret_is_made_in_the_readme():
    used = set(secrets(RAYJOB)) | set(secrets(list(MANIFESTS.values())))
    made = set(re.findall(r"create secret generic ([\w-]+) --from-literal=(\w+)=", README))
    assert used == made == {("codetr-postgres", "password"), ("codetr-ray", "auth_token")}


def test_variables_are_known_to_the_code():
    code = "".join(path.read_text() for package in ("harness", "model") for path in (ROOT / package).rglob("*.py"))
    texts = README + "".join(path.read_text() for path in DEPLOY.iterdir())
    own = set(re.findall(r"\b(CODETR_[A-Z]+|MLFLOW_TRACKING_URI)\b", texts)) - {
        "CODETR_IMAGE"
    }  # of compose.yaml itself
    assert {"CODETR_STORE", "CODETR_CACHE", "CODETR_COMMIT", "CODETR_DIRTY"} <= own
    for name in own:
        assert f'"{name}"' in code, f"nothing reads {name}"


# ---- the README


def console() -> list[list[str]]:
    blocks = re.findall(r"^```console\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    lines = [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]
    commands = [part for line in lines for part in re.split(r" \| ", line)]
    return [shlex.split(re.sub(r"^(\w+=\S+ )+", "", command)) for command in commands]


@pytest.mark.parametrize("words", console(), ids=" ".join)
def test_readme_commands_are_understood(words):
    for word in words:
        if re.match(r"(deploy|ablations)/|constraints\.txt", word):
            assert (ROOT / word).exists(), word
    if words[0] == "codetr":
        args = build_parser().parse_args(words[1:])
        if words[1] == "submit":
            args = build_parser().parse_args(["run", *args.run])
        for file in getattr(args, "files", []):
            grid = open_grid(ROOT / file, args.preset or "digits", args.overrides, data=args.data, require_data=False)
            assert grid.trials
    elif words[0] == "ray":
        from ray.scripts.scripts import cli

        known = {name for parameter in cli.commands[words[1]].params for name in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known
    else:
        others = {"docker", "export", "helm", "install", "kubectl", "pip", "python3", "sed", "source", "sudo"}
        assert words[0] in others, f"nothing checks `{words[0]}`"


def test_readme_names_files_that_exist():
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", README):
        assert (DEPLOY / target).exists(), target
    files = {path.name for path in DEPLOY.iterdir()} - {"README.md"}
    assert files == set(re.findall(r"^\| \[([\w.-]+)\]", README, re.MULTILINE))
    headings = {re.sub(r"\W+", "-", heading.lower()) for heading in re.findall(r"^## (.+)$", README, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([\w-]+)\)", README)) <= headings
