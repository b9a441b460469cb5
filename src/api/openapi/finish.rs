//! What the derived schemas cannot say by themselves, said to the whole document.
//!
//! Nothing here knows a route; the few names are those of types.

use serde_json::{Map, Value as Json};

/// The schema by which any JSON goes; it says nothing and is left out.
const ANYTHING: &str = "#/components/schemas/Value";

/// Makes every schema say what the server does.
pub(super) fn finish(document: &mut Json) {
    every_object(document, &mut |fields| {
        leave_out_anything(fields);
        bound_integers(fields);
    });
    if let Some(schemas) = document["components"]["schemas"].as_object_mut() {
        schemas.shift_remove("Value");
    }
    // Bodies that fit several of these are taken as the first that fits.
    overlap(document, "VertexInstance");
}

fn every_object(json: &mut Json, change: &mut impl FnMut(&mut Map<String, Json>)) {
    match json {
        Json::Array(items) => items.iter_mut().for_each(|item| every_object(item, change)),
        Json::Object(fields) => {
            change(fields);
            fields
                .values_mut()
                .for_each(|field| every_object(field, change));
        }
        _ => {}
    }
}

/// Null is a value too: any JSON or null would be two alternatives that both fit.
fn leave_out_anything(fields: &mut Map<String, Json>) {
    let names = |schema: &Json| schema["$ref"] == ANYTHING;
    if fields.get("$ref").is_some_and(|name| name == ANYTHING) {
        fields.shift_remove("$ref");
    }
    let alternatives = fields.get("oneOf").and_then(Json::as_array);
    if alternatives.is_some_and(|alternatives| alternatives.iter().any(names)) {
        fields.shift_remove("oneOf");
    }
}

/// Says what the integers' Rust types hold: the format names a width, and a minimum of 0 or more no sign.
fn bound_integers(fields: &mut Map<String, Json>) {
    let is_integer = match fields.get("type") {
        Some(Json::Array(kinds)) => kinds.iter().any(|kind| kind == "integer"),
        Some(kind) => kind == "integer",
        None => false,
    };
    if !is_integer {
        return;
    }
    let minimum = fields.get("minimum").and_then(Json::as_i64);
    let unsigned = minimum.is_some_and(|minimum| minimum >= 0);
    let wide = fields.get("format").is_none_or(|format| format == "int64");
    let (least, most): (i64, u64) = match (wide, unsigned) {
        (true, true) => (0, u64::MAX),
        (true, false) => (i64::MIN, i64::MAX.unsigned_abs()),
        (false, true) => (0, u32::MAX.into()),
        (false, false) => (i32::MIN.into(), i32::MAX.unsigned_abs().into()),
    };
    if !fields.contains_key("minimum") && !fields.contains_key("exclusiveMinimum") {
        fields.insert("minimum".to_owned(), least.into());
    }
    if !fields.contains_key("maximum") {
        fields.insert("maximum".to_owned(), most.into());
    }
}

/// Allows bodies that fit several of a schema's alternatives.
fn overlap(document: &mut Json, name: &str) {
    if let Some(schema) = document["components"]["schemas"][name].as_object_mut()
        && let Some(alternatives) = schema.shift_remove("oneOf")
    {
        schema.insert("anyOf".to_owned(), alternatives);
    }
}
