"""Makes schemas.json from the published CRDs: derive_schemas.py JOBSET_CHECKOUT TRAINER_CHECKOUT MANIFEST...

The CRDs have two megabytes. What is kept is the schema of the fields that our manifests use, word for word
but for the descriptions; any other field is closed, so that a manifest with a new one fails until this is run
again. Both projects are under the Apache License 2.0, as this one is.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

CRDS = {
    "JobSet": (0, "config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml"),
    "ClusterTrainingRuntime": (1, "manifests/base/crds/trainer.kubeflow.org_clustertrainingruntimes.yaml"),
    "TrainJob": (1, "manifests/base/crds/trainer.kubeflow.org_trainjobs.yaml"),
}
NAMES = ("https://github.com/kubernetes-sigs/jobset", "https://github.com/kubeflow/trainer")
KEPT = ("type", "required", "enum", "pattern", "minimum", "maximum", "minItems", "maxItems", "maxLength")


def derived(schema: dict[str, Any], values: list[Any]) -> dict[str, Any]:
    """The part of a structural schema that speaks of `values`."""
    kept = {name: schema[name] for name in (*KEPT, "anyOf") if name in schema}
    if schema.get("x-kubernetes-int-or-string"):
        kept.pop("type", None)
    if properties := schema.get("properties"):
        used = {name for value in values for name in value} & properties.keys()
        kept["properties"] = {
            name: derived(properties[name], [value[name] for value in values if name in value])
            for name in sorted(used)
        }
        kept["additionalProperties"] = False
    elif "additionalProperties" in schema:
        kept["additionalProperties"] = derived(
            schema["additionalProperties"], [item for value in values for item in value.values()]
        )
    if "items" in schema:
        kept["items"] = derived(schema["items"], [item for value in values for item in value])
    return kept


def main(checkouts: list[str], manifests: list[str]) -> None:
    documents = [d for path in manifests for d in yaml.safe_load_all(Path(path).read_text())]
    result = {}
    for kind, (number, path) in CRDS.items():

        def git(*words, where=checkouts[number]):
            return subprocess.check_output(["git", "-C", where, *words], text=True)

        [version] = yaml.safe_load(git("show", f"HEAD:{path}"))["spec"]["versions"]
        schema = derived(version["schema"]["openAPIV3Schema"], [d for d in documents if d["kind"] == kind])
        # The CRD leaves what every object has to the server.
        schema["properties"]["metadata"] = {
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
            },
            "additionalProperties": False,
        }
        source = f"{NAMES[number]}/blob/{git('rev-parse', 'HEAD').strip()}/{path}"
        result[kind] = {"version": version["name"], "source": source, "schema": schema}
    Path(__file__).with_name("schemas.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:3], sys.argv[3:])
