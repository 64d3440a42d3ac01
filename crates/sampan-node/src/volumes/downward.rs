//! `downwardAPI`: fields of the pod as files.

use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, DownwardAPIVolumeSource, Pod};

use super::{Error, File, Payload, mode};
use crate::downward::{Surroundings, field, resource};

pub fn payload(pod: &Pod, source: &DownwardAPIVolumeSource, around: &Surroundings) -> Result<Payload, Error> {
    files(pod, source.items.as_deref().unwrap_or_default(), mode(source.default_mode), around)
}

pub fn files(pod: &Pod, items: &[DownwardAPIVolumeFile], mode: u32, around: &Surroundings) -> Result<Payload, Error> {
    let mut payload = Payload::new();
    for item in items {
        let text = match (&item.field_ref, &item.resource_field_ref) {
            (Some(selector), _) => field(pod, selector, around)?,
            (None, Some(selector)) => resource(pod, None, selector, around)?,
            (None, None) => continue,
        };
        let mode = item.mode.map_or(mode, i32::unsigned_abs);
        payload.insert(item.path.clone(), File::new(text.into_bytes(), mode));
    }
    Ok(payload)
}
