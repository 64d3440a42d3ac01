//! Tab-separated tables with a header line, as the published data comes.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// A table in memory; rows are as long as the header.
pub struct Table {
    columns: HashMap<String, usize>,
    rows: Vec<Vec<String>>,
}

/// One row of a [`Table`].
#[derive(Clone, Copy)]
pub struct Row<'a> {
    table: &'a Table,
    cells: &'a [String],
}

impl Table {
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let mut lines = text.lines();
        let header = lines.next().with_context(|| format!("{} is empty", path.display()))?;
        let columns: HashMap<String, usize> =
            header.split('\t').enumerate().map(|(index, name)| (name.to_owned(), index)).collect();
        let rows: Vec<Vec<String>> =
            lines.map(|line| line.split('\t').map(str::to_owned).collect::<Vec<_>>()).collect();
        if let Some(row) = rows.iter().find(|row| row.len() != columns.len()) {
            bail!("{}: a row of {} cells under {} columns: {row:?}", path.display(), row.len(), columns.len());
        }
        Ok(Self { columns, rows })
    }

    pub fn rows(&self) -> impl Iterator<Item = Row<'_>> {
        self.rows.iter().map(|cells| Row { table: self, cells })
    }
}

impl<'a> Row<'a> {
    /// The cell under a column. A column that the file lacks is an error of this program.
    pub fn get(self, column: &str) -> &'a str {
        let index = self.table.columns.get(column).unwrap_or_else(|| panic!("the table has no column {column:?}"));
        &self.cells[*index]
    }
}
