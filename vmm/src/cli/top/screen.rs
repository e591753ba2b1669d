//! The terminal.

use std::time::{Duration, Instant};

use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Alignment, Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Text};
use ratatui::widgets::{Cell, Paragraph, Row, Table};

use super::super::CliError;
use super::frame::{self, Column, HEADS, NUMBERS, View, WIDTHS};
use super::sample::{Sample, Sampler};

/// What is pressed, in the last line.
const KEYS: &str =
    " q quit   sort: n name  s state  i image  r ready  m shared  p private  c cpu   arrows move ";

/// Shows what there is, until `q` is pressed.
///
/// # Errors
/// The terminal's, or no agent answers any more.
pub fn run(mut sampler: Sampler, mut view: View, interval: Duration) -> Result<(), CliError> {
    // Before the screen is taken, so that what is wrong can be read.
    let mut sample = sampler.look()?;
    let mut terminal = ratatui::try_init().map_err(CliError::terminal)?;
    let done = (|| {
        loop {
            let size = terminal.size().map_err(CliError::terminal)?;
            let page = usize::from(size.height.saturating_sub(10)).max(1);
            terminal.draw(|frame| draw(frame, &sample, &view)).map_err(CliError::terminal)?;
            let next = Instant::now() + interval;
            loop {
                let left = next.saturating_duration_since(Instant::now());
                if !event::poll(left).map_err(CliError::terminal)? {
                    sample = sampler.look()?;
                    break;
                }
                let Event::Key(key) = event::read().map_err(CliError::terminal)? else { break };
                if key.kind != KeyEventKind::Press {
                    continue;
                }
                let interrupt = key.modifiers.contains(KeyModifiers::CONTROL);
                match key.code {
                    KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
                    KeyCode::Char('c') if interrupt => return Ok(()),
                    code => press(&mut view, code, page, sample.rows.len()),
                }
                break;
            }
        }
    })();
    let restored = ratatui::try_restore().map_err(CliError::terminal);
    done.and(restored)
}

fn press(view: &mut View, code: KeyCode, page: usize, rows: usize) {
    let last = rows.saturating_sub(1);
    match code {
        KeyCode::Char('n') => view.sort_by(Column::Name),
        KeyCode::Char('s') => view.sort_by(Column::State),
        KeyCode::Char('i') => view.sort_by(Column::Image),
        KeyCode::Char('r') => view.sort_by(Column::Ready),
        KeyCode::Char('m') => view.sort_by(Column::Shared),
        KeyCode::Char('p') => view.sort_by(Column::Private),
        KeyCode::Char('c') => view.sort_by(Column::Cpu),
        KeyCode::Up => view.top = view.top.saturating_sub(1),
        KeyCode::Down => view.top = (view.top + 1).min(last),
        KeyCode::PageUp => view.top = view.top.saturating_sub(page),
        KeyCode::PageDown => view.top = (view.top + page).min(last),
        KeyCode::Home => view.top = 0,
        KeyCode::End => view.top = rows.saturating_sub(page),
        _ => {}
    }
}

fn draw(frame: &mut Frame<'_>, sample: &Sample, view: &View) {
    let lines = frame::summary(sample, view);
    let height = u16::try_from(lines.len()).unwrap_or(u16::MAX);
    let parts = Layout::vertical([
        Constraint::Length(height.saturating_add(1)),
        Constraint::Min(2),
        Constraint::Length(1),
    ]);
    let [above, middle, below] = parts.areas(frame.area());
    frame.render_widget(Paragraph::new(Text::from_iter(lines)), above);
    let bold = Style::new().add_modifier(Modifier::REVERSED);
    let cell = |(at, text): (usize, String)| {
        let right = NUMBERS.contains(&at);
        let line = Line::from(text);
        Cell::from(if right { line.alignment(Alignment::Right) } else { line })
    };
    let heads = HEADS.iter().map(|head| (*head).to_owned()).enumerate().map(cell);
    let rows = frame::sorted(sample, view).into_iter().skip(view.top);
    let rows = rows.map(|row| Row::new(frame::cells(row).into_iter().enumerate().map(cell)));
    let table = Table::new(rows, WIDTHS.map(Constraint::Length))
        .header(Row::new(heads.collect::<Vec<_>>()).style(bold));
    frame.render_widget(table, middle);
    frame.render_widget(Paragraph::new(KEYS).style(bold), below);
}
