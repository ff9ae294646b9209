//! Which devices does a file name? Rows out of CSV or JSON, each with its place, so that a fault can be found.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, bail};
use serde::Deserialize;
use serde_json::Value;

/// The columns of a CSV file; `tenant` and `name` must be there.
pub(crate) const COLUMNS: [&str; 6] = ["tenant", "customer", "id", "name", "type", "token"];
/// A column `label:room` holds the values of the label `room`; an empty field is no label.
pub(crate) const LABEL_COLUMN: &str = "label:";

/// What spreadsheets carry out as a formula begins so, some in their wide forms, and what is marked against it.
const FORMULA: [char; 11] = ['=', '+', '-', '@', '\t', '\r', '＝', '＋', '－', '＠', MARK];
/// Makes a text of it, and is itself not shown.
const MARK: char = '\'';

/// A cell that no spreadsheet takes for a formula; [`unmarked`] has it back.
pub(crate) fn marked(cell: &str) -> Cow<'_, str> {
    if cell.starts_with(FORMULA) { format!("{MARK}{cell}").into() } else { cell.into() }
}

/// A cell as it was before it was marked.
fn unmarked(cell: &str) -> &str {
    cell.strip_prefix(MARK).filter(|rest| rest.starts_with(FORMULA)).unwrap_or(cell)
}

/// Where a row stands: `line 7`, `devices[3]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// A line of a CSV file, counted from 1, the header included.
    Line(u64),
    /// An entry of a list in a JSON file, counted from 0.
    Entry(&'static str, usize),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Line(line) => write!(f, "line {line}"),
            Place::Entry(list, place) => write!(f, "{list}[{place}]"),
        }
    }
}

/// A device as a file names it: nothing is checked yet but its form.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Row {
    /// Id or name; the one given for the whole file when missing.
    pub(crate) tenant: Option<String>,
    /// Id or name; none: unassigned.
    pub(crate) customer: Option<String>,
    /// Made up when missing.
    pub(crate) id: Option<String>,
    #[serde(default)]
    pub(crate) name: String,
    /// The default one when missing.
    #[serde(rename = "type")]
    pub(crate) kind: Option<String>,
    /// Made up when missing.
    pub(crate) token: Option<String>,
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
}

/// A tenant that a JSON file names.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TenantRow {
    pub(crate) id: Option<String>,
    pub(crate) name: String,
}

/// A customer that a JSON file names.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CustomerRow {
    pub(crate) id: Option<String>,
    /// Id or name.
    pub(crate) tenant: String,
    pub(crate) name: String,
}

/// Something in a file that is not taken over, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) place: Place,
    /// Which part of it.
    pub(crate) field: &'static str,
    /// What it must be, or what stands in its way.
    pub(crate) expected: String,
}

/// What a file holds. Rows that are none are among the faults, and stop no other.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) tenants: Vec<(Place, TenantRow)>,
    pub(crate) customers: Vec<(Place, CustomerRow)>,
    pub(crate) devices: Vec<(Place, Row)>,
    pub(crate) faults: Vec<Fault>,
}

/// Reads a CSV file: columns by its header, in any order.
///
/// # Errors
/// When the header is missing, names an unknown column, or lacks one that is needed.
pub(crate) fn parse_csv(text: &str) -> anyhow::Result<File> {
    let mut reader =
        csv::ReaderBuilder::new().flexible(true).trim(csv::Trim::All).from_reader(text.as_bytes());
    let header = reader.headers().context("the file has no header")?.clone();
    let is_known = |column: &str| COLUMNS.contains(&column) || column.starts_with(LABEL_COLUMN);
    if let Some(unknown) = header.iter().find(|column| !is_known(column)) {
        bail!(
            "line 1: there is no column {unknown:?}; the columns are {} and {LABEL_COLUMN}KEY",
            COLUMNS.join(", ")
        );
    }
    let column = |name: &str| header.iter().position(|column| column == name);
    if column("name").is_none() {
        bail!("line 1: the column name is missing; the columns are {}", COLUMNS.join(", "));
    }
    let mut file = File::default();
    let mut lines = Lines { text, passed_bytes: 0, line: 1 };
    for record in reader.records() {
        let record = match record {
            Ok(record) => record,
            Err(error) => {
                let place = lines.place(error.position());
                file.faults.push(Fault { place, field: "row", expected: format!("CSV in UTF-8 ({error})") });
                continue;
            }
        };
        let place = lines.place(record.position());
        if record.len() != header.len() {
            let expected = format!("{} fields as in the header, not {}", header.len(), record.len());
            file.faults.push(Fault { place, field: "row", expected });
            continue;
        }
        let field = |name| {
            column(name)
                .and_then(|column| record.get(column))
                .filter(|text| !text.is_empty())
                .map(|text| unmarked(text).to_owned())
        };
        let labels = header.iter().zip(&record).filter_map(|(column, value)| {
            let key = column.strip_prefix(LABEL_COLUMN).filter(|_| !value.is_empty())?;
            Some((key.to_owned(), unmarked(value).to_owned()))
        });
        let row = Row {
            labels: labels.collect(),
            tenant: field("tenant"),
            customer: field("customer"),
            id: field("id"),
            name: field("name").unwrap_or_default(),
            kind: field("type"),
            token: field("token"),
        };
        file.devices.push((place, row));
    }
    Ok(file)
}

/// Counts lines as an editor does: the reader's own count is one behind where lines end in CR LF.
struct Lines<'a> {
    text: &'a str,
    passed_bytes: usize,
    line: u64,
}

impl Lines<'_> {
    /// The line where the record at `position` begins; positions only grow.
    fn place(&mut self, position: Option<&csv::Position>) -> Place {
        let start =
            position.and_then(|position| usize::try_from(position.byte()).ok()).unwrap_or(self.passed_bytes);
        let rest = self.text.as_bytes().get(start..).unwrap_or_default();
        let blank = rest.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        let passed = self.text.as_bytes().get(self.passed_bytes..start + blank).unwrap_or_default();
        self.line += passed.iter().filter(|byte| **byte == b'\n').count() as u64;
        self.passed_bytes = start + blank;
        Place::Line(self.line)
    }
}

/// Reads a JSON file: a list of devices, or `{"tenants":[…],"customers":[…],"devices":[…]}` as `export` writes it.
///
/// # Errors
/// When it is not JSON of that form.
pub(crate) fn parse_json(text: &str) -> anyhow::Result<File> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Lists {
        #[serde(default)]
        tenants: Vec<Value>,
        #[serde(default)]
        customers: Vec<Value>,
        #[serde(default)]
        devices: Vec<Value>,
    }
    let lists = match serde_json::from_str(text).context("the file is not JSON")? {
        Value::Array(devices) => Lists { tenants: Vec::new(), customers: Vec::new(), devices },
        object @ Value::Object(_) => serde_json::from_value(object).context(
            "the file must hold a list of devices, or an object with tenants, customers and devices",
        )?,
        _ => bail!("the file must hold a list of devices, or an object with tenants, customers and devices"),
    };
    let mut file = File::default();
    file.tenants = entries("tenants", lists.tenants, &mut file.faults);
    file.customers = entries("customers", lists.customers, &mut file.faults);
    file.devices = entries("devices", lists.devices, &mut file.faults);
    Ok(file)
}

fn entries<T: serde::de::DeserializeOwned>(
    list: &'static str,
    values: Vec<Value>,
    faults: &mut Vec<Fault>,
) -> Vec<(Place, T)> {
    let mut entries = Vec::with_capacity(values.len());
    for (number, value) in values.into_iter().enumerate() {
        let place = Place::Entry(list, number);
        match serde_json::from_value(value) {
            Ok(entry) => entries.push((place, entry)),
            Err(error) => faults.push(Fault { place, field: "entry", expected: error.to_string() }),
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_columns_go_by_their_names_and_empty_fields_are_none() {
        let file = parse_csv("name,token,tenant\nA1,,T\n\"B, 1\",x,\n").unwrap();
        let row = |name: &str, token: Option<&str>, tenant: Option<&str>| Row {
            name: name.into(),
            token: token.map(Into::into),
            tenant: tenant.map(Into::into),
            ..Row::default()
        };
        assert_eq!(
            file.devices,
            [(Place::Line(2), row("A1", None, Some("T"))), (Place::Line(3), row("B, 1", Some("x"), None))]
        );
    }

    #[test]
    fn labels_have_a_column_for_each_key() {
        let file = parse_csv("name,label:room,label:site\nA1,12,\nA2,,north\n").unwrap();
        let labels = |number: usize| file.devices[number].1.labels.clone();
        assert_eq!(labels(0), [("room".to_owned(), "12".to_owned())].into());
        assert_eq!(labels(1), [("site".to_owned(), "north".to_owned())].into());
    }

    #[test]
    fn no_cell_is_a_formula_and_each_comes_back_as_it_was() {
        for cell in [
            "=1+1", "+1", "-1", "@A1", "＝1", "＋1", "－1", "＠A1", "\t=1", "\r=1", "'", "''", "'=1", "'x",
            "x=1", "",
        ] {
            let marked = marked(cell);
            assert!(!marked.starts_with(['=', '+', '-', '@', '＝', '＋', '－', '＠', '\t', '\r']), "{cell}");
            assert_eq!(unmarked(&marked), cell);
        }
        let file = parse_csv("name,token,label:sum\n'=1+1,'-x,'@A1\n").unwrap();
        let row = &file.devices[0].1;
        assert_eq!((row.name.as_str(), row.token.as_deref()), ("=1+1", Some("-x")));
        assert_eq!(row.labels["sum"], "@A1");
    }

    #[test]
    fn a_row_that_is_none_stops_no_other() {
        let file = parse_csv("tenant,name\nT,A1\nT\nT,A2\n").unwrap();
        assert_eq!(file.devices.len(), 2);
        assert_eq!(file.faults.len(), 1);
        assert_eq!((&file.faults[0].place, file.faults[0].field), (&Place::Line(3), "row"));
        let file = parse_json(r#"[{"name":"A1"},{"name":"A2","colour":"red"},7]"#).unwrap();
        assert_eq!(file.devices.len(), 1);
        assert_eq!(file.faults.len(), 2);
        assert!(file.faults[0].expected.contains("colour"), "{:?}", file.faults);
    }

    #[test]
    fn lines_are_counted_as_in_an_editor() {
        for end in ["\n", "\r\n"] {
            let text = ["tenant,name", "T,A1", "", "T,\"A\n2\"", "T", "T,A3", ""].join(end);
            let file = parse_csv(&text).unwrap();
            let places: Vec<_> = file.devices.iter().map(|(place, _)| place.clone()).collect();
            assert_eq!(places, [Place::Line(2), Place::Line(4), Place::Line(7)], "{end:?}");
            assert_eq!(file.faults[0].place, Place::Line(6), "{end:?}");
        }
    }

    #[test]
    fn a_header_that_misses_the_point_is_an_error() {
        assert!(parse_csv("tenant,nmae\nT,A1\n").unwrap_err().to_string().contains("no column \"nmae\""));
        assert!(parse_csv("tenant,id\nT,\n").unwrap_err().to_string().contains("the column name is missing"));
        assert!(parse_json("7").is_err());
        assert!(parse_json(r#"{"device":[]}"#).is_err());
    }
}
