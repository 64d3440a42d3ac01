"""The core of the Python client against a cluster: create, watch, patch, list, logs, exec, delete. Prints `done`."""

import sys

from kubernetes import client, config, watch
from kubernetes.stream import stream

namespace = sys.argv[1]
config.load_kube_config()
core = client.CoreV1Api()

maps = core.create_namespaced_config_map(namespace, client.V1ConfigMap(
    metadata=client.V1ObjectMeta(name="words", labels={"group": "words"}), data={"word": "kelp"}))
assert maps.metadata.uid
patched = core.patch_namespaced_config_map("words", namespace, {"data": {"word": "salt"}})
assert patched.data == {"word": "salt"}, patched.data
listed = core.list_namespaced_config_map(namespace, label_selector="group=words", limit=1)
assert [one.metadata.name for one in listed.items] == ["words"], listed

core.create_namespaced_pod(namespace, client.V1Pod(
    metadata=client.V1ObjectMeta(name="main"),
    spec=client.V1PodSpec(termination_grace_period_seconds=0, containers=[client.V1Container(
        name="main", image="busybox:1", command=["sh", "-c", "echo ahoy; sleep 3600"])])))
watcher = watch.Watch()
for event in watcher.stream(core.list_namespaced_pod, namespace, field_selector="metadata.name=main", timeout_seconds=60):
    if event["object"].status.phase == "Running":
        watcher.stop()
pod = core.read_namespaced_pod("main", namespace)
assert pod.status.phase == "Running", pod.status
# The line may come a moment after the start.
for line in core.read_namespaced_pod_log("main", namespace, follow=True, _preload_content=False).stream():
    assert line == b"ahoy\n", line
    break
said = stream(core.connect_get_namespaced_pod_exec, "main", namespace, command=["echo", "hello"],
              stdout=True, stderr=True, stdin=False, tty=False)
assert said == "hello\n", said
core.delete_namespaced_pod("main", namespace)
try:
    core.create_namespaced_config_map(namespace, client.V1ConfigMap(metadata=client.V1ObjectMeta(name="Words")))
except client.ApiException as refused:
    assert refused.status == 422, refused
else:
    raise AssertionError("a wrong name was taken")
print("done")
