//! `persistentVolumeClaim`: a bound claim whose PersistentVolume is a directory of this machine (`local`, `hostPath`), as
//! the built-in `local` class makes them. Binding and provisioning are the controllers'.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::{PersistentVolume, Pod};
use sampan_client::Client;

use super::{Error, blocking, fs_group, ownership};
use crate::objects::Objects;
use crate::pod::PodExt;

pub async fn set_up(objects: &Objects, client: &Client, pod: &Pod, claim: &str) -> Result<PathBuf, Error> {
    let found = objects.claim(pod.namespace(), claim).await?;
    let phase = found.status.as_ref().and_then(|status| status.phase.as_deref());
    let name = found.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).filter(|name| !name.is_empty());
    let Some(name) = name.filter(|_| phase == Some("Bound")) else {
        return Err(Error::Unbound(claim.into()));
    };
    let volume: PersistentVolume =
        client.get(None, name).await.map_err(|source| Error::PersistentVolume { name: name.into(), source })?;
    let spec = volume.spec.as_ref();
    let local = spec.and_then(|spec| spec.local.as_ref()).map(|source| &source.path);
    let host = spec.and_then(|spec| spec.host_path.as_ref()).map(|source| &source.path);
    let path = PathBuf::from(local.or(host).ok_or(Error::Unsupported("a PersistentVolume that is not local"))?);
    let (target, group) = (path.clone(), fs_group(pod));
    blocking(move || {
        let is_new = !target.exists();
        std::fs::create_dir_all(&target).map_err(Error::io("cannot create", &target))?;
        if is_new {
            use std::os::unix::fs::PermissionsExt as _;
            std::fs::set_permissions(&target, std::fs::Permissions::from_mode(0o777))
                .map_err(Error::io("cannot change the mode of", &target))?;
        }
        match group {
            Some(group) => ownership::apply(&target, group, false),
            None => Ok(()),
        }
    })
    .await?;
    Ok(path)
}
