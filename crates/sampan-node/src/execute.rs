//! Carries one action of a pod out and says what came of it. No choice is made here: what to do next is the lifecycle's.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod};
use sampan_base::task;
use sampan_client::DeleteOptions;
use sampan_client::api::{Preconditions, Target};
use sampan_net::PodLink;
use sampan_runtime::{ContainerState, Error};
use tokio::sync::mpsc;

use crate::events::PodEvents;
use crate::node::Node;
use crate::pod::lifecycle::MINIMUM_GRACE;
use crate::pod::state::Trouble;
use crate::pod::{Action, Done, Fact, PodExt};
use crate::volumes::Mounted;
use crate::{container, hooks, image, message, names};

/// What an action needs to know of its pod, as it was when the action began.
#[derive(Clone)]
pub struct Context {
    pub node: Arc<Node>,
    pub pod: Arc<Pod>,
    pub events: PodEvents,
    pub mounted: Mounted,
    pub addresses: Vec<IpAddr>,
    /// The network namespace of the pod's sandbox.
    pub netns: Option<PathBuf>,
    /// Facts that must be known before the action has ended.
    pub early: mpsc::UnboundedSender<Fact>,
}

/// The longest a pod waits for Services to stop leading to it, before its containers are told to end.
const WITHDRAWAL: Duration = Duration::from_secs(3);

/// What preparing the volumes gave, beside the facts of [`Done`].
pub type Prepared = Option<Mounted>;

pub async fn perform(context: Context, action: Action) -> (Done, Prepared) {
    let op = action.op();
    let mut facts = Vec::new();
    let mut prepared = None;
    let result = match action {
        Action::PrepareVolumes => context.prepare().await.map(|mounted| prepared = Some(mounted)),
        Action::RunSandbox { attempt } => context.run_sandbox(attempt, &mut facts).await,
        Action::AttachNetwork { sandbox } => context.attach(&sandbox, &mut facts).await,
        Action::EnsureImage { container } => context.ensure_image(&container, &mut facts).await,
        Action::StartContainer { container, sandbox, attempt, image } => {
            context.start(&container, &sandbox, attempt, &image, &mut facts).await
        }
        Action::StopContainer { id, container, grace, message } => {
            context.stop(&id, &container, grace, &message, &mut facts).await
        }
        Action::RemoveContainer { id } => {
            let removed = context.node.parts.runtime.remove_container(&id).await;
            removed.map(|()| facts.push(Fact::ContainerGone(id))).map_err(trouble("RemoveContainerError"))
        }
        Action::StopSandbox { id } => context.stop_sandbox(&id, &mut facts).await,
        Action::RemoveSandbox { id } => {
            let removed = context.node.parts.runtime.remove_sandbox(&id).await;
            context.node.disown_sandbox(&id);
            removed.map(|()| facts.push(Fact::SandboxGone(id))).map_err(trouble("FailedKillPod"))
        }
        Action::ReleaseVolumes => context.release().await,
        Action::DeletePod => context.delete(&mut facts).await,
    };
    if let Err(trouble) = &result {
        tracing::warn!(pod = context.pod.full_name(), ?op, reason = trouble.reason, "{}", trouble.message);
    }
    (Done { op, facts, result }, prepared)
}

fn trouble(reason: &'static str) -> impl Fn(Error) -> Trouble {
    move |error| Trouble { reason, message: error.to_string() }
}

impl Context {
    fn container(&self, name: &str) -> Result<&Container, Trouble> {
        let gone =
            || Trouble { reason: "CreateContainerConfigError", message: format!("container {name:?} not found") };
        self.pod.container(name).ok_or_else(gone)
    }

    async fn prepare(&self) -> Result<Mounted, Trouble> {
        let Self { node, pod, .. } = self;
        let around = node.surroundings(pod, &self.addresses);
        let mounted = node.volumes.prepare(pod, &around).await.map_err(|error| {
            let message = error.to_string();
            self.events.warning(None, "FailedMount", &message);
            Trouble { reason: "FailedMount", message }
        })?;
        Ok(mounted)
    }

    async fn run_sandbox(&self, attempt: u32, facts: &mut Vec<Fact>) -> Result<(), Trouble> {
        let Self { node, pod, .. } = self;
        if attempt > 0 {
            self.events.normal(None, "SandboxChanged", "Pod sandbox changed, it will be killed and re-created.");
        }
        let directory = node.log_directory(pod);
        let made = match blocking(move || std::fs::create_dir_all(&directory)).await {
            Ok(()) => node.parts.runtime.run_sandbox(&container::sandbox_config(node, pod, attempt)).await,
            Err(error) => Err(Error::System(format!("cannot make the log directory: {error}"))),
        };
        match made {
            Ok(sandbox) => {
                node.own_sandbox(&sandbox.id, pod.uid());
                facts.push(Fact::Sandbox(Box::new(sandbox)));
                Ok(())
            }
            Err(error) => Err(self.sandbox_trouble("Failed to create pod sandbox", error.to_string())),
        }
    }

    fn sandbox_trouble(&self, what: &str, error: String) -> Trouble {
        self.events.warning(None, "FailedCreatePodSandBox", &format!("{what}: {error}"));
        Trouble { reason: "FailedCreatePodSandBox", message: error }
    }

    async fn attach(&self, sandbox: &str, facts: &mut Vec<Fact>) -> Result<(), Trouble> {
        let Self { node, pod, .. } = self;
        let Some(netns) = &self.netns else {
            return Err(Trouble {
                reason: "FailedCreatePodSandBox",
                message: "the sandbox has no network namespace".into(),
            });
        };
        let link = PodLink { sandbox, netns, namespace: pod.namespace(), name: pod.name() };
        match node.parts.network.attach(&link).await {
            Ok(addresses) => {
                self.write_names(&addresses).await?;
                facts.push(Fact::Addresses { sandbox: sandbox.into(), addresses });
                Ok(())
            }
            Err(error) => {
                Err(self.sandbox_trouble("Failed to create pod sandbox: cannot set up the network", error.to_string()))
            }
        }
    }

    /// `/etc/hosts` and `/etc/resolv.conf`, which every container of the pod gets.
    async fn write_names(&self, addresses: &[IpAddr]) -> Result<(), Trouble> {
        let Self { node, pod, .. } = self;
        let (node, pod, addresses) = (node.clone(), pod.clone(), addresses.to_vec());
        let written = blocking(move || {
            let directory = node.pod_directory(pod.uid());
            std::fs::create_dir_all(&directory)?;
            let (hosts, resolver) = container::shared_files(&directory);
            let config = &node.config;
            let machine = names::Resolver::parse(&std::fs::read_to_string(&config.resolv_conf).unwrap_or_default());
            let hostname = names::hostname(&pod, &config.name, &config.cluster_domain);
            let of_host = pod.host_network().then(|| std::fs::read_to_string("/etc/hosts").unwrap_or_default());
            let text = names::hosts(&pod, &addresses, &hostname, &config.cluster_domain, of_host.as_deref());
            std::fs::write(hosts, text)?;
            std::fs::write(
                resolver,
                names::resolver(&pod, &machine, &config.cluster_dns, &config.cluster_domain).text(),
            )
        })
        .await;
        written.map_err(|error| Trouble { reason: "FailedCreatePodSandBox", message: error.to_string() })
    }

    async fn ensure_image(&self, name: &str, facts: &mut Vec<Fact>) -> Result<(), Trouble> {
        let Self { node, pod, events, .. } = self;
        let container = self.container(name)?;
        let parts = &node.parts;
        let image = image::ensure(&*parts.images, &node.objects, &parts.clock, events, pod, container).await?;
        facts.push(Fact::Image { container: name.into(), image });
        Ok(())
    }

    async fn start(
        &self,
        name: &str,
        sandbox: &str,
        attempt: u32,
        image: &str,
        facts: &mut Vec<Fact>,
    ) -> Result<(), Trouble> {
        let Self { node, pod, events, .. } = self;
        let spec = self.container(name)?;
        let runtime = &node.parts.runtime;
        let failed = |trouble: Trouble| {
            events.warning(Some(spec), "Failed", &format!("Error: {}", trouble.message));
            trouble
        };
        let found = node.parts.images.get(image).await.map_err(trouble("CreateContainerError")).map_err(failed)?;
        let image = found
            .ok_or_else(|| Trouble {
                reason: "CreateContainerError",
                message: format!("image {image} is not here any more"),
            })
            .map_err(failed)?;
        if pod.host_network() {
            self.write_names(&[]).await.map_err(failed)?;
        }
        let config = container::container_config(node, pod, spec, attempt, &image, &self.mounted, &self.addresses)
            .await
            .map_err(failed)?;
        let file = container::message_file(node, pod.uid(), name, attempt);
        let made = blocking(move || {
            file.parent().map_or(Ok(()), std::fs::create_dir_all)?;
            // Anybody in the container may write it, whatever user it runs as.
            std::fs::write(&file, "")?;
            std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o666))
        });
        made.await
            .map_err(|error| Trouble { reason: "CreateContainerError", message: error.to_string() })
            .map_err(failed)?;
        let created = runtime.create_container(sandbox, &config).await;
        if let Err(Error::Lost(sandbox)) = &created {
            facts.push(Fact::SandboxLost(sandbox.clone()));
        }
        let id = created.map_err(trouble("CreateContainerError")).map_err(failed)?;
        events.normal(Some(spec), "Created", "Container created");
        if let Err(error) = runtime.start_container(&id).await {
            facts.extend(self.look(&id).await);
            if let Error::Lost(sandbox) = &error {
                facts.push(Fact::SandboxLost(sandbox.clone()));
            }
            return Err(failed(Trouble { reason: "RunContainerError", message: error.to_string() }));
        }
        events.normal(Some(spec), "Started", "Container started");
        let running = self.look(&id).await;
        if let Some(hook) = spec.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.as_ref()) {
            // The worker has to know the container before the hook ends, so that it can stop it meanwhile.
            for fact in running {
                let _ = self.early.send(fact);
            }
            let address = self.addresses.first().copied();
            if let Err(error) = hooks::run(node, hook, spec, &id, address).await {
                events.warning(Some(spec), "FailedPostStartHook", "PostStartHook failed");
                events.normal(Some(spec), "Killing", "FailedPostStartHook");
                let stopped = runtime.stop_container(&id, pod.grace()).await;
                facts.extend(self.look(&id).await);
                stopped.map_err(trouble("PostStartHookError"))?;
                return Err(Trouble { reason: "PostStartHookError", message: error });
            }
        }
        facts.extend(self.look(&id).await);
        Ok(())
    }

    /// A container as it is now, with its termination message when it has ended.
    async fn look(&self, id: &str) -> Vec<Fact> {
        observe(&self.node, &self.pod, id).await
    }

    /// The addresses Services may lead to, also of an adopted pod whose network was not looked up any more.
    fn served(&self) -> Vec<IpAddr> {
        let reported = self.pod.status.iter().flat_map(|status| status.pod_ips.iter().flatten());
        let reported = reported.filter_map(|one| one.ip.parse().ok()).filter(|_| !self.pod.host_network());
        self.addresses.iter().copied().chain(reported).collect()
    }

    async fn stop(
        &self,
        id: &str,
        name: &str,
        grace: Duration,
        message: &str,
        facts: &mut Vec<Fact>,
    ) -> Result<(), Trouble> {
        let Self { node, events, .. } = self;
        let spec = self.pod.container(name);
        events.normal(spec, "Killing", message);
        let clock = &node.parts.clock;
        let mut left = grace;
        let began = clock.instant();
        // No new connection may lead to a pod that is told to end (a probe's kill is not the end of the pod). Bounded:
        // the API, which tells the proxies, may be away.
        let addresses = self.served();
        if self.pod.deletion().is_some() && !addresses.is_empty() {
            let withdrawn = node.parts.proxy.withdrawn(&addresses);
            if clock.timeout(WITHDRAWAL.min(grace / 2), withdrawn).await.is_none() {
                tracing::warn!(pod = self.pod.full_name(), "Services may still lead here while it stops");
            }
        }
        let hook = spec.and_then(|spec| Some((spec, spec.lifecycle.as_ref()?.pre_stop.as_ref()?)));
        if let Some((spec, hook)) = hook.filter(|_| grace > Duration::ZERO) {
            let address = self.addresses.first().copied();
            match clock.timeout(grace, hooks::run(node, hook, spec, id, address)).await {
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    tracing::debug!(container = name, error, "preStop hook");
                    events.warning(Some(spec), "FailedPreStopHook", "PreStopHook failed");
                }
                None => tracing::debug!(container = name, "preStop hook did not end within the grace period"),
            }
            left = grace.saturating_sub(began.elapsed()).max(MINIMUM_GRACE.min(grace));
        }
        let stopped = node.parts.runtime.stop_container(id, left).await;
        facts.extend(self.look(id).await);
        stopped.map_err(trouble("KillContainerError"))
    }

    async fn stop_sandbox(&self, id: &str, facts: &mut Vec<Fact>) -> Result<(), Trouble> {
        let Self { node, .. } = self;
        let parts = &node.parts;
        parts
            .network
            .detach(id)
            .await
            .map_err(|error| Trouble { reason: "FailedKillPod", message: error.to_string() })?;
        parts.runtime.stop_sandbox(id).await.map_err(trouble("FailedKillPod"))?;
        let containers = parts.runtime.containers().await.map_err(trouble("FailedKillPod"))?;
        for container in containers.into_iter().filter(|container| container.sandbox == id) {
            facts.extend(self.look(&container.id).await);
        }
        facts.push(Fact::SandboxStopped(id.into()));
        Ok(())
    }

    async fn release(&self) -> Result<(), Trouble> {
        let Self { node, pod, .. } = self;
        let released = node.volumes.release(pod.uid()).await;
        released.map_err(|error| Trouble { reason: "FailedUnmount", message: error.to_string() })
    }

    async fn delete(&self, facts: &mut Vec<Fact>) -> Result<(), Trouble> {
        let Self { node, pod, .. } = self;
        let preconditions = Preconditions { uid: Some(pod.uid().into()), resource_version: None };
        let options = DeleteOptions {
            grace_period_seconds: Some(0),
            preconditions: Some(preconditions),
            ..DeleteOptions::default()
        };
        let target = Target::of::<Pod>(Some(pod.namespace())).name(pod.name());
        match node.parts.client.delete(&target, &options).await {
            Ok(_) => Ok(()),
            // It is gone, or another pod has its name by now.
            Err(error) if error.is_not_found() || error.is_conflict() => {
                facts.push(Fact::PodGone);
                Ok(())
            }
            Err(error) => Err(Trouble { reason: "FailedDelete", message: error.to_string() }),
        }
    }
}

/// A container as the runtime has it now.
pub async fn observe(node: &Node, pod: &Pod, id: &str) -> Vec<Fact> {
    match node.parts.runtime.container(id).await {
        Ok(status) => {
            let mut facts = Vec::new();
            if status.state == ContainerState::Exited
                && let Some(text) = message::read(node, pod, &status).await
            {
                facts.push(Fact::Message { container: id.into(), text });
            }
            facts.push(Fact::Container(Box::new(status)));
            facts
        }
        Err(Error::NotFound { .. }) => vec![Fact::ContainerGone(id.into())],
        Err(error) => {
            tracing::warn!(container = id, %error, "cannot look at a container");
            Vec::new()
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> std::io::Result<T> + Send + 'static) -> std::io::Result<T> {
    match task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(std::io::Error::other(error)),
    }
}
