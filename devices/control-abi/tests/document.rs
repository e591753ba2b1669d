//! The tables of docs/control-device.md are those of this crate. To write them anew:
//! `CONTROL_ABI_WRITE=1 cargo test -p control-abi --test document`.

use std::fmt::Write;
use std::path::Path;

use control_abi::command::{LAYOUT, MAX_BUFFER, MAX_INPUT};
use control_abi::event::KINDS;
use control_abi::field::{Occurs, TAGS, Type};
use control_abi::operation::{Buffer, Input, OPERATIONS};
use control_abi::register::{REGISTERS, feature};
use control_abi::rights::RIGHTS;
use control_abi::status::ERRORS;

fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let mut text = line(head.iter().map(ToString::to_string).collect());
    text += &line(head.iter().map(|_| "---".to_owned()).collect());
    text.extend(rows.into_iter().map(line));
    text
}

fn bits(list: &[(u32, &str, &str)]) -> String {
    let row = |(bit, name, what): &(u32, &str, &str)| {
        vec![bit.to_string(), (*name).to_owned(), what.trim().to_owned()]
    };
    table(&["bit", "name", "meaning"], list.iter().map(row))
}

fn registers() -> String {
    let rows = REGISTERS.iter().map(|register| {
        vec![
            format!("0x{:02x}", *register as u16),
            register.label().to_owned(),
            register.access().label().to_owned(),
            register.description().trim().to_owned(),
        ]
    });
    table(&["offset", "name", "access", "meaning"], rows)
}

fn command() -> String {
    let rows = LAYOUT.iter().map(|(name, offset, bytes)| {
        vec![offset.to_string(), bytes.to_string(), (*name).to_owned()]
    });
    table(&["offset", "bytes", "word"], rows)
}

fn operations() -> String {
    let rows = OPERATIONS.iter().map(|operation| {
        let rights: Vec<_> = RIGHTS
            .iter()
            .filter(|(bit, ..)| operation.rights() & 1 << bit != 0)
            .map(|(_, name, _)| *name)
            .collect();
        let input = match operation.input() {
            Input::Raw => "any bytes".to_owned(),
            Input::Fields(fields) => {
                let field = |(tag, occurs): &(control_abi::field::Tag, Occurs)| {
                    let mark = match occurs {
                        Occurs::Once => "",
                        Occurs::Optional => "?",
                        Occurs::Many => "*",
                    };
                    format!("{}{mark}", tag.label())
                };
                fields.iter().map(field).collect::<Vec<_>>().join(" ")
            }
        };
        let buffer = match operation.buffer() {
            Buffer::Unused => String::new(),
            Buffer::Written => "written: bytes".to_owned(),
            Buffer::Read => "read: bytes".to_owned(),
            Buffer::Fields(tags) => {
                let labels: Vec<_> = tags.iter().map(|tag| tag.label()).collect();
                format!("written: {}", labels.join(" "))
            }
        };
        vec![
            format!("0x{:02x}", operation.number()),
            operation.label().to_owned(),
            rights.join(", "),
            input,
            buffer,
            operation.description().trim().to_owned(),
        ]
    });
    table(&["number", "name", "rights", "input", "buffer", "does"], rows)
}

fn fields() -> String {
    let rows = TAGS.iter().map(|tag| {
        let value = tag.value_type();
        let most = match value {
            Type::U32 | Type::U64 => value.label().to_owned(),
            Type::Text(max) | Type::Lines(max) | Type::Bytes(max) => {
                format!("{}, up to {max} bytes", value.label())
            }
        };
        let description = tag.description().trim().to_owned();
        vec![tag.number().to_string(), tag.label().to_owned(), most, description]
    });
    table(&["tag", "name", "value", "meaning"], rows)
}

fn events() -> String {
    let rows = KINDS.iter().map(|kind| {
        let description = kind.description().trim().to_owned();
        vec![kind.number().to_string(), kind.label().to_owned(), description]
    });
    table(&["number", "name", "meaning"], rows)
}

fn errors() -> String {
    let rows = ERRORS.iter().map(|error| {
        let description = error.description().trim().to_owned();
        vec![format!("{:08X}", error.status()), error.label().to_owned(), description]
    });
    table(&["status", "name", "meaning"], rows)
}

#[test]
fn the_document_has_the_tables_of_this_crate() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/control-device.md");
    let mut text = std::fs::read_to_string(&path).unwrap();
    let tables = [
        ("registers", registers()),
        ("features", bits(feature::FEATURES)),
        ("rights", bits(RIGHTS)),
        ("command", command()),
        ("operations", operations()),
        ("fields", fields()),
        ("events", events()),
        ("errors", errors()),
    ];
    let mut wrong = String::new();
    for (name, table) in tables {
        let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- end of {name} -->"));
        let start = text.find(&begin).unwrap_or_else(|| panic!("no {begin}")) + begin.len();
        let length = text[start..].find(&end).unwrap_or_else(|| panic!("no {end}"));
        if text[start..start + length] != table {
            writeln!(wrong, "{name} should be:\n{table}").unwrap();
        }
        text.replace_range(start..start + length, &table);
    }
    if std::env::var_os("CONTROL_ABI_WRITE").is_some() {
        std::fs::write(&path, text).unwrap();
    } else {
        assert!(wrong.is_empty(), "{wrong}");
    }
}

#[test]
fn the_document_states_the_limits_of_this_crate() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/control-device.md");
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.contains(&format!("{MAX_INPUT} bytes of input")));
    assert!(text.contains(&format!("{} KiB of buffer", MAX_BUFFER >> 10)));
}
