#!/usr/bin/env python3
"""Makes the Helm chart's templates out of the kustomize base, so that every object is written down once.

    deploy/generate.py            writes the templates and the copies of the definition of TrainingJob
    deploy/generate.py --check    changes nothing; names what is not current, and fails

A template is a file of the base with some texts replaced by what values decide. Each text must be found exactly as
often as it is said here: a base that changed under a replacement is refused, not half replaced.
tests/rig/deploy_check.sh shows that both render the same objects.
"""
import pathlib
import re
import sys

HERE = pathlib.Path(__file__).resolve().parent
BASE = HERE / "kustomize" / "base"
MONITORING = HERE / "kustomize" / "overlays" / "monitoring"
TEMPLATES = HERE / "helm" / "slipway" / "templates"
DEFINITION = "trainingjob.crd.yaml"

# Where the controller lives. Everything that is named after the base's namespace follows the release's.
NAMESPACE = "slipway-system"
# The workspace's version is the one of the chart and of the images.
VERSION = re.search(r'^version = "([^"]+)"', (HERE.parent / "Cargo.toml").read_text(encoding="utf-8"), re.M)[1]


def image(values):
    """The expression of an image: the chart's version unless the values name a tag, or a digest instead."""
    return (
        '{{ .Values.%s.repository }}{{ if .Values.%s.digest }}@{{ .Values.%s.digest }}'
        '{{ else }}:{{ .Values.%s.tag | default .Chart.AppVersion }}{{ end }}' % ((values,) * 4)
    )


def block(name, indent, key=None):
    """A field of the pod that is there only where the values have it."""
    pad = " " * indent
    return (
        f"{pad}{{{{- with .Values.{name} }}}}\n"
        f"{pad}{key or name}:\n"
        f"{pad}  {{{{- toYaml . | nindent {indent + 2} }}}}\n"
        f"{pad}{{{{- end }}}}\n"
    )


RESOURCES = """\
          resources:
            requests:
              cpu: 250m
              memory: 256Mi
            limits:
              memory: 2Gi
"""

DEPLOYMENT = [
    ("  replicas: 2\n", "  replicas: {{ .Values.replicas }}\n", 1),
    (f"image: slipway/launcher:{VERSION}\n", "image: " + image("image") + "\n", 1),
    ("imagePullPolicy: IfNotPresent", "imagePullPolicy: {{ .Values.image.pullPolicy }}", 1),
    (f"--sidecar-image=slipway/worker:{VERSION}\n", "--sidecar-image=" + image("sidecarImage") + "\n", 1),
    (
        "--advertise=$(SLIPWAY_RENDEZVOUS_SERVICE_HOST):7443\n",
        '--advertise={{ .Values.advertise | default "$(SLIPWAY_RENDEZVOUS_SERVICE_HOST):7443" }}\n',
        1,
    ),
    (
        f"            - --leader-election-namespace={NAMESPACE}\n",
        "            - --leader-election-namespace={{ .Release.Namespace }}\n"
        "            {{- with .Values.watchNamespace }}\n"
        "            - --watch-namespace={{ . }}\n"
        "            {{- end }}\n"
        "            {{- range $role, $label := .Values.levels }}\n"
        "            - --level={{ $role }}={{ $label }}\n"
        "            {{- end }}\n"
        "            {{- range .Values.extraArgs }}\n"
        "            - {{ . | quote }}\n"
        "            {{- end }}\n",
        1,
    ),
    (
        "      serviceAccountName: slipway-controller\n",
        "      serviceAccountName: slipway-controller\n"
        "      {{- with .Values.priorityClassName }}\n"
        "      priorityClassName: {{ . }}\n"
        "      {{- end }}\n"
        + block("imagePullSecrets", 6)
        + block("nodeSelector", 6)
        + block("tolerations", 6)
        + block("affinity", 6),
        1,
    ),
    (RESOURCES, "          resources:\n            {{- toYaml .Values.resources | nindent 12 }}\n", 1),
    (
        "    metadata:\n      labels:\n",
        "    metadata:\n"
        + block("podAnnotations", 6, "annotations")
        + "      labels:\n",
        1,
    ),
]

SCOPE = [
    (
        "kind: ClusterRoleBinding\nmetadata:\n  name: slipway-controller\n",
        "kind: {{ if .Values.watchNamespace }}RoleBinding{{ else }}ClusterRoleBinding{{ end }}\n"
        "metadata:\n"
        "  name: slipway-controller\n"
        "  {{- with .Values.watchNamespace }}\n"
        "  namespace: {{ . }}\n"
        "  {{- end }}\n",
        1,
    ),
]


def aggregate(role):
    """The label by which everybody with the built-in role `role` is given ours."""
    label = f'    rbac.authorization.k8s.io/aggregate-to-{role}: "true"\n'
    return (label, "    {{- if .Values.rbac.aggregate }}\n" + label + "    {{- end }}\n", 1)


# Template: where from, replacements, and the value without which nothing of it is rendered.
PLAN = {
    "namespace.yaml": (BASE / "namespace.yaml", [(f"name: {NAMESPACE}", "name: {{ .Release.Namespace }}", 1)], ".Values.namespace.create"),
    "rbac_controller.yaml": (BASE / "rbac_controller.yaml", [], None),
    "rbac_scope.yaml": (BASE / "rbac_scope.yaml", SCOPE, None),
    "rbac_users.yaml": (BASE / "rbac_users.yaml", [aggregate("edit"), aggregate("view")], None),
    "policies.yaml": (BASE / "policies.yaml", [], None),
    "flow.yaml": (
        BASE / "flow.yaml",
        [
            (f"namespaces: [{NAMESPACE}]", "namespaces: [{{ .Release.Namespace }}]", 1),
            ("nominalConcurrencyShares: 30", "nominalConcurrencyShares: {{ .Values.flow.shares }}", 1),
        ],
        None,
    ),
    "services.yaml": (BASE / "services.yaml", [], None),
    "network_policy.yaml": (
        BASE / "network_policy.yaml",
        [("kubernetes.io/metadata.name: monitoring", "kubernetes.io/metadata.name: {{ .Values.monitoring.namespace }}", 1)],
        ".Values.networkPolicy.enabled",
    ),
    "deployment.yaml": (BASE / "deployment.yaml", DEPLOYMENT, None),
    "pod_monitors.yaml": (
        MONITORING / "pod_monitors.yaml",
        [("interval: 15s", "interval: {{ .Values.monitoring.interval }}", 2)],
        ".Values.monitoring.enabled",
    ),
    DEFINITION: (
        HERE / DEFINITION,
        [("\nmetadata:\n", "\nmetadata:\n  annotations:\n    # Its removal would remove every job.\n    helm.sh/resource-policy: keep\n", 1)],
        ".Values.crds.install",
    ),
}

# Of every file; these may occur any number of times.
EVERYWHERE = [
    (f"  namespace: {NAMESPACE}\n", "  namespace: {{ .Release.Namespace }}\n"),
    (f"system:serviceaccount:{NAMESPACE}:", "system:serviceaccount:{{ .Release.Namespace }}:"),
]


class Refused(Exception):
    """The base is not what the replacements were written for."""


def template(name, source, replacements, condition):
    """The text of a template."""
    text = source.read_text(encoding="utf-8")
    if "{{" in text:
        raise Refused(f"{source}: contains {{{{, which Helm would take for its own")
    for old, new, count in replacements:
        if text.count(old) != count:
            raise Refused(f"{source}: holds {old!r} {text.count(old)} times, and {name} replaces it {count} times")
        text = text.replace(old, new)
    for old, new in EVERYWHERE:
        text = text.replace(old, new)
    if NAMESPACE in text:
        raise Refused(f"{source}: names {NAMESPACE} where {name} has no replacement for it")
    head = f"{{{{- /* Made from {source.relative_to(HERE).as_posix()} by generate.py; changes belong there. */ -}}}}\n"
    if condition:
        return f"{head}{{{{- if {condition} }}}}\n{text}{{{{- end }}}}\n"
    return head + text


def outputs():
    """Every generated file and what belongs into it."""
    definition = HERE / DEFINITION
    if not definition.exists():
        raise Refused(f"{definition}: is missing; `launcher crd` prints it")
    files = {BASE / DEFINITION: definition.read_text(encoding="utf-8")}
    for name, (source, replacements, condition) in PLAN.items():
        files[TEMPLATES / name] = template(name, source, replacements, condition)
    return files


def versions():
    """Faults of the chart's versions."""
    chart = (HERE / "helm" / "slipway" / "Chart.yaml").read_text(encoding="utf-8")
    found = {key: re.search(rf'^{key}: "?([^"\n]+)', chart, re.M)[1] for key in ("version", "appVersion")}
    return [f"Chart.yaml: {key} is {version}, and the workspace is {VERSION}" for key, version in found.items() if version != VERSION]


def main(arguments):
    """Writes, or checks."""
    check = arguments == ["--check"]
    if arguments and not check:
        print(__doc__.strip(), file=sys.stderr)
        return 2
    try:
        files = outputs()
    except Refused as refused:
        print(f"generate.py: {refused}", file=sys.stderr)
        return 1
    faults = versions()
    kept = {path.name for path in files if path.parent == TEMPLATES} | {"NOTES.txt"}
    for path in sorted(TEMPLATES.iterdir()):
        if path.name not in kept:
            faults.append(f"{path.relative_to(HERE)}: is made from nothing")
    for path, text in sorted(files.items()):
        if check and (not path.exists() or path.read_text(encoding="utf-8") != text):
            faults.append(f"{path.relative_to(HERE)}: is not current; run deploy/generate.py")
        elif not check:
            path.write_text(text, encoding="utf-8")
    for fault in faults:
        print(f"generate.py: {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
