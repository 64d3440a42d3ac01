//! The container runtime and the images of a node. Pulls run in the host's network namespace where the node is a local
//! one: registries on the host's loopback, its VPN and its name servers work there as they do for the user.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use async_trait::async_trait;
use nix::sched::{CloneFlags, setns};
use sampan_base::{Clock, Dice};
use sampan_runtime::images::Store;
use sampan_runtime::linux::{Linux, RuntimeConfig};
use sampan_runtime::{Error, Image, Images, RegistryAuth, Runtime};
use tokio::runtime::Handle;

use super::Config;

pub async fn runtime(
    config: &Config,
    outside: Option<PathBuf>,
    clock: &Clock,
    dice: &Dice,
) -> anyhow::Result<(Arc<dyn Runtime>, Arc<dyn Images>)> {
    let store =
        Arc::new(Store::open(&config.data, config.registries.clone().with_environment(), clock.clone(), dice.clone())?);
    let runtime = Linux::open(
        RuntimeConfig {
            run_dir: config.run.clone(),
            data_dir: config.data.clone(),
            cgroup_prefix: "sampan".into(),
            clock: clock.clone(),
            dice: dice.clone(),
        },
        store.clone(),
    )
    .await?;
    let images: Arc<dyn Images> = match outside {
        Some(netns) => Arc::new(Outside { inner: store, runtime: runtime_in(netns)? }),
        None => store,
    };
    Ok((Arc::new(runtime), images))
}

/// Images whose pulls run elsewhere.
struct Outside {
    inner: Arc<dyn Images>,
    runtime: Handle,
}

/// A runtime whose one thread is in another network namespace.
fn runtime_in(netns: PathBuf) -> anyhow::Result<Handle> {
    let file = File::open(&netns).with_context(|| format!("open {}", netns.display()))?;
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::Builder::new().name("outside".into()).spawn(move || {
        let entered = setns(&file, CloneFlags::CLONE_NEWNET).map_err(std::io::Error::from);
        let made = entered.and_then(|()| {
            // Blocking work (name look-ups, unpacking) runs on threads that inherit the namespace from this one.
            tokio::runtime::Builder::new_current_thread().enable_all().build()
        });
        match made {
            Ok(runtime) => {
                let _ = sender.send(Ok(runtime.handle().clone()));
                runtime.block_on(std::future::pending::<()>());
            }
            Err(error) => {
                let _ = sender.send(Err(error));
            }
        }
    })?;
    receiver.recv().context("the thread outside the node died")?.context("enter the host's network namespace")
}

#[async_trait]
impl Images for Outside {
    #[allow(clippy::disallowed_methods, reason = "the task belongs to the runtime of the other namespace")]
    async fn pull(&self, reference: &str, auth: Option<&RegistryAuth>) -> Result<Image, Error> {
        let (inner, reference, auth) = (self.inner.clone(), reference.to_owned(), auth.cloned());
        let pulled = self.runtime.spawn(async move { inner.pull(&reference, auth.as_ref()).await });
        pulled.await.map_err(|error| Error::System(format!("the pull died: {error}")))?
    }

    async fn get(&self, reference: &str) -> Result<Option<Image>, Error> {
        self.inner.get(reference).await
    }

    async fn list(&self) -> Result<Vec<Image>, Error> {
        self.inner.list().await
    }

    async fn remove(&self, reference: &str) -> Result<(), Error> {
        self.inner.remove(reference).await
    }

    async fn load(&self, archive: &mut (dyn std::io::Read + Send)) -> Result<Vec<Image>, Error> {
        self.inner.load(archive).await
    }
}
