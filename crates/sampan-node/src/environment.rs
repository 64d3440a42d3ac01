//! A container's environment: Services, `envFrom`, `env`, in upstream's order and with its words for what is missing
//! (`pkg/kubelet/kubelet_pods.go`, makeEnvironmentVariables).

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, EnvVarSource, Pod};
use sampan_client::informer::Key;

use crate::downward::{self, Surroundings};
use crate::expand::expand;
use crate::objects::{Missing, Objects, ServiceView};
use crate::pod::PodExt;

#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Missing(#[from] Missing),
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    Key { key: String, kind: &'static str, namespace: String, name: String },
    #[error(transparent)]
    Downward(#[from] downward::Error),
    #[error("services have not yet been read at least once, cannot construct envvars")]
    Services,
    #[error("fileKeyRef is not supported by this node")]
    FileKey,
}

/// The variables in the order they are set.
pub async fn make(
    pod: &Pod,
    container: &Container,
    objects: &Objects,
    around: &Surroundings,
) -> Result<Vec<(String, String)>, Error> {
    let (own, master) = objects.services(pod.namespace()).await.ok_or(Error::Services)?;
    let links = pod.spec_ref().enable_service_links.unwrap_or(true);
    let mut of_services = service_variables(if links { &own } else { &[] }, master.as_ref());
    let mut result: Vec<(String, String)> = Vec::new();
    let mut set: BTreeMap<String, String> = BTreeMap::new();
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        let mut add = |key: &str, value: String| {
            put(&mut result, &format!("{prefix}{key}"), &value);
            set.insert(format!("{prefix}{key}"), value);
        };
        if let Some(reference) = &source.config_map_ref {
            match objects.config_map(pod.namespace(), &reference.name).await {
                Ok(map) => map.data.iter().flatten().for_each(|(key, value)| add(key, value.clone())),
                Err(Missing::Absent { .. }) if reference.optional == Some(true) => {}
                Err(missing) => return Err(missing.into()),
            }
        }
        if let Some(reference) = &source.secret_ref {
            match objects.secret(pod.namespace(), &reference.name).await {
                Ok(secret) => {
                    for (key, value) in secret.data.iter().flatten() {
                        add(key, String::from_utf8_lossy(&value.0).into_owned());
                    }
                }
                Err(Missing::Absent { .. }) if reference.optional == Some(true) => {}
                Err(missing) => return Err(missing.into()),
            }
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (Some(text), _) if !text.is_empty() => {
                let lookup = |name: &str| set.get(name).or_else(|| of_services.get(name)).map(String::as_str);
                Some(expand(text, lookup))
            }
            (_, Some(source)) => from_source(pod, container, source, objects, around).await?,
            _ => Some(String::new()),
        };
        // An optional source that is absent leaves the variable unset.
        let Some(value) = value else { continue };
        of_services.remove(&variable.name);
        put(&mut result, &variable.name, &value);
        set.insert(variable.name.clone(), value);
    }
    // A variable of the container beats one of a Service.
    result.extend(of_services.into_iter().filter(|(name, _)| !set.contains_key(name)));
    Ok(result)
}

fn put(result: &mut Vec<(String, String)>, name: &str, value: &str) {
    match result.iter_mut().find(|(known, _)| known == name) {
        Some((_, old)) => value.clone_into(old),
        None => result.push((name.into(), value.into())),
    }
}

async fn from_source(
    pod: &Pod,
    container: &Container,
    source: &EnvVarSource,
    objects: &Objects,
    around: &Surroundings,
) -> Result<Option<String>, Error> {
    if let Some(selector) = &source.field_ref {
        return Ok(Some(downward::field(pod, selector, around)?));
    }
    if let Some(selector) = &source.resource_field_ref {
        return Ok(Some(downward::resource(pod, Some(container), selector, around)?));
    }
    let namespace = pod.namespace();
    if let Some(selector) = &source.config_map_key_ref {
        let found = objects
            .config_map(namespace, &selector.name)
            .await
            .map(|map| map.data.as_ref().and_then(|data| data.get(&selector.key)).cloned());
        return keyed(found, selector.optional, &selector.key, "ConfigMap", namespace, &selector.name);
    }
    if let Some(selector) = &source.secret_key_ref {
        let found = objects.secret(namespace, &selector.name).await.map(|secret| {
            let data = secret.data.as_ref()?.get(&selector.key)?;
            Some(String::from_utf8_lossy(&data.0).into_owned())
        });
        return keyed(found, selector.optional, &selector.key, "Secret", namespace, &selector.name);
    }
    if source.file_key_ref.is_some() {
        return Err(Error::FileKey);
    }
    Ok(Some(String::new()))
}

fn keyed(
    found: Result<Option<String>, Missing>,
    optional: Option<bool>,
    key: &str,
    kind: &'static str,
    namespace: &str,
    name: &str,
) -> Result<Option<String>, Error> {
    let optional = optional == Some(true);
    match found {
        Ok(Some(value)) => Ok(Some(value)),
        Ok(None) | Err(Missing::Absent { .. }) if optional => Ok(None),
        Ok(None) => Err(Error::Key { key: key.into(), kind, namespace: namespace.into(), name: name.into() }),
        Err(missing) => Err(missing.into()),
    }
}

/// `REDIS_MASTER_SERVICE_HOST` and its kin (upstream's `pkg/kubelet/envvars`).
fn service_variables(own: &[(Key, Arc<ServiceView>)], master: Option<&Arc<ServiceView>>) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    let master = master.map(|service| ("kubernetes", service));
    let own = own.iter().map(|(key, service)| (key.name.as_str(), service));
    for (name, service) in master.into_iter().chain(own) {
        let ip = service.spec.cluster_ip.as_str();
        let Some(first) = service.spec.ports.first() else { continue };
        if ip.is_empty() || ip == "None" {
            continue;
        }
        let upper = |text: &str| text.replace(['-', '.'], "_").to_uppercase();
        let prefix = upper(name);
        let mut add = |suffix: String, value: String| variables.insert(format!("{prefix}_{suffix}"), value);
        add("SERVICE_HOST".into(), ip.into());
        add("SERVICE_PORT".into(), first.port.to_string());
        for port in service.spec.ports.iter().filter(|port| !port.name.is_empty()) {
            add(format!("SERVICE_PORT_{}", upper(&port.name)), port.port.to_string());
        }
        let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
        for (index, port) in service.spec.ports.iter().enumerate() {
            let protocol = if port.protocol.is_empty() { "TCP" } else { &port.protocol };
            let url = format!("{}://{host}:{}", protocol.to_lowercase(), port.port);
            if index == 0 {
                add("PORT".into(), url.clone());
            }
            let base = format!("PORT_{}_{}", port.port, protocol.to_uppercase());
            add(base.clone(), url);
            add(format!("{base}_PROTO"), protocol.to_lowercase());
            add(format!("{base}_PORT"), port.port.to_string());
            add(format!("{base}_ADDR"), ip.into());
        }
    }
    variables
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn variables_of_a_service() {
        let service: ServiceView = serde_json::from_value(json!({
            "spec": {"clusterIP": "10.0.0.11", "ports": [{"name": "p-1", "port": 6379, "protocol": "TCP"}]},
        }))
        .expect("a service");
        let variables = service_variables(&[(Key::new("ns", "redis-primary"), Arc::new(service))], None);
        let lines: Vec<String> = variables.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(
            lines,
            [
                "REDIS_PRIMARY_PORT=tcp://10.0.0.11:6379",
                "REDIS_PRIMARY_PORT_6379_TCP=tcp://10.0.0.11:6379",
                "REDIS_PRIMARY_PORT_6379_TCP_ADDR=10.0.0.11",
                "REDIS_PRIMARY_PORT_6379_TCP_PORT=6379",
                "REDIS_PRIMARY_PORT_6379_TCP_PROTO=tcp",
                "REDIS_PRIMARY_SERVICE_HOST=10.0.0.11",
                "REDIS_PRIMARY_SERVICE_PORT=6379",
                "REDIS_PRIMARY_SERVICE_PORT_P_1=6379",
            ]
        );
    }
}
