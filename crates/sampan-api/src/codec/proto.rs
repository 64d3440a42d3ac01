//! Objects as protobuf answers: the envelope around one object, lists whose items are made elsewhere, frames of a watch.
//! `special-types` in `schema/README.md` has the rules.

use serde_json::Value;

use super::wire::{put_bytes, put_message, put_tag, put_varint};
use super::{ProtoError, proto_write};
use crate::kind::Gvk;
use crate::schema::{Schema, TypeId};

/// What every body begins with.
pub const MAGIC: [u8; 4] = *b"k8s\0";

/// The metadata of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListMeta {
    pub resource_version: String,
    pub continue_token: String,
    pub remaining: Option<i64>,
}

/// A stored object as a protobuf body, envelope included.
pub fn json_to_proto(schema: &Schema, root: TypeId, gvk: &Gvk, json: &[u8]) -> Result<Vec<u8>, ProtoError> {
    Ok(envelope(gvk, &proto_object(schema, root, json)?))
}

/// A stored object as a message without envelope: an item of a list.
pub fn proto_object(schema: &Schema, root: TypeId, json: &[u8]) -> Result<Vec<u8>, ProtoError> {
    let object: Value = serde_json::from_slice(json).map_err(|error| ProtoError::Malformed(error.to_string()))?;
    proto_write::encode(schema, root, &object)
}

/// Puts the envelope around a message.
pub fn envelope(gvk: &Gvk, message: &[u8]) -> Vec<u8> {
    let api_version = gvk.api_version();
    let mut type_meta = Vec::with_capacity(api_version.len() + gvk.kind.len() + 4);
    put_bytes(&mut type_meta, 1, api_version.as_bytes());
    put_bytes(&mut type_meta, 2, gvk.kind.as_bytes());
    let mut out = Vec::with_capacity(message.len() + type_meta.len() + 24);
    out.extend_from_slice(&MAGIC);
    put_bytes(&mut out, 1, &type_meta);
    put_bytes(&mut out, 2, message);
    put_bytes(&mut out, 3, b"");
    put_bytes(&mut out, 4, b"");
    out
}

/// A list from the messages of its items (made by [`proto_object`]). `list` names the list's own kind (`PodList`).
pub fn proto_list<'a>(list: &Gvk, meta: &ListMeta, items: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut header = Vec::with_capacity(64);
    put_bytes(&mut header, 1, b"");
    put_bytes(&mut header, 2, meta.resource_version.as_bytes());
    put_bytes(&mut header, 3, meta.continue_token.as_bytes());
    if let Some(remaining) = meta.remaining {
        put_tag(&mut header, 4, super::wire::VARINT);
        put_varint(&mut header, remaining.cast_unsigned());
    }
    let swapped = list.group == "meta.k8s.io" && list.version == "v1beta1" && list.kind == "PartialObjectMetadataList";
    let (meta_number, items_number) = if swapped { (2, 1) } else { (1, 2) };
    let mut message = Vec::new();
    if !swapped {
        put_bytes(&mut message, meta_number, &header);
    }
    for item in items {
        put_bytes(&mut message, items_number, item);
    }
    if swapped {
        put_bytes(&mut message, meta_number, &header);
    }
    envelope(list, &message)
}

/// One frame of a watch: length, then the event around an object that has its envelope.
pub fn watch_frame(event: &str, object: &[u8]) -> Vec<u8> {
    let mut out = vec![0; 4];
    put_bytes(&mut out, 1, event.as_bytes());
    let filled: Result<(), ProtoError> = put_message(&mut out, 2, |out| {
        put_bytes(out, 1, object);
        Ok(())
    });
    debug_assert!(filled.is_ok());
    let length = u32::try_from(out.len() - 4).unwrap_or(u32::MAX);
    out[..4].copy_from_slice(&length.to_be_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::super::wire::{Payload, Reader};
    use super::*;

    fn gvk(kind: &str) -> Gvk {
        Gvk { group: String::new(), version: "v1".into(), kind: kind.into() }
    }

    #[test]
    fn a_watch_frame_is_length_type_and_object() {
        let object = envelope(&gvk("Pod"), b"");
        let frame = watch_frame("ADDED", &object);
        let (length, event) = frame.split_at(4);
        assert_eq!(u32::from_be_bytes(length.try_into().unwrap()) as usize, event.len());
        let mut reader = Reader::new(event);
        assert_eq!(reader.next(), Ok(Some((1, Payload::Bytes(b"ADDED")))));
        let (number, payload) = reader.next().unwrap().unwrap();
        assert_eq!(number, 2);
        assert_eq!(Reader::new(payload.bytes("object").unwrap()).next(), Ok(Some((1, Payload::Bytes(&object)))));
    }

    #[test]
    fn a_list_holds_its_items_in_order() {
        let meta = ListMeta { resource_version: "7".into(), continue_token: String::new(), remaining: Some(3) };
        let body = proto_list(&gvk("PodList"), &meta, [&b"one"[..], b"two"]);
        let mut outer = Reader::new(&body[4..]);
        outer.next().unwrap();
        let (_, raw) = outer.next().unwrap().unwrap();
        let mut list = Reader::new(raw.bytes("raw").unwrap());
        assert_eq!(list.next().unwrap().unwrap().0, 1);
        assert_eq!(list.next(), Ok(Some((2, Payload::Bytes(b"one")))));
        assert_eq!(list.next(), Ok(Some((2, Payload::Bytes(b"two")))));
        assert_eq!(list.next(), Ok(None));
    }
}
