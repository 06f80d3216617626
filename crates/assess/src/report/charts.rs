//! Charts as SVG elements: drawn by `plotters`, named for those who do not see them, coloured so that the page's style can
//! turn them dark.

mod monitored;

use std::error::Error;

use highroad_eval::{
    Classes, CurvePoint, Observed, Percentile, Rankings, ReliabilityBin, Summary, Tensors, precision_recall_curve,
    reliability, roc_curve, thin,
};
use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

pub use monitored::{distribution_chart, effect_chart};

use super::evaluation::metric_name;
use super::{Chart, ReportError, one_line};

/// Most labels of a confusion matrix, and most curves of a chart; the rarest are left out of curves and summed in the matrix.
const MOST_LABELS: usize = 12;
const MOST_CURVES: usize = 5;
/// Most points of a curve or a scatter plot.
const MOST_CURVE_POINTS: usize = 300;
const MOST_SCATTER_POINTS: usize = 1500;
/// Most slices of a chart; all are in the table of metrics.
const MOST_SLICES: usize = 30;
/// Longest name in a picture; the table beside it has more.
const MOST_NAME_CHARS: usize = 18;
/// Ranges of confidence in a reliability diagram.
const N_BINS: usize = 10;
/// Ranks that are counted each; later ones are summed.
const MOST_RANKS: usize = 10;

/// Size of a picture, in its own units.
const SIZE: (u32, u32) = (560, 400);
const ROW_HEIGHT: u32 = 26;

// `templates/style.css` knows these colours by their digits.
const INK: RGBColor = RGBColor(0x1f, 0x23, 0x28);
const SOFT: RGBColor = RGBColor(0x59, 0x63, 0x6e);
const LINE: RGBColor = RGBColor(0xd1, 0xd9, 0xe0);
const MAIN: RGBColor = RGBColor(0x09, 0x69, 0xda);
const CURVES: [RGBColor; MOST_CURVES] = [
    MAIN,
    RGBColor(0xbc, 0x4c, 0x00),
    RGBColor(0x1a, 0x7f, 0x37),
    RGBColor(0x82, 0x50, 0xdf),
    RGBColor(0xbf, 0x39, 0x89),
];

const UNIT: [f64; 2] = [0.0, 1.0];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Plane<'a, 'b> = ChartContext<'b, SVGBackend<'a>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;
type Drawn = Result<(), Box<dyn Error>>;

/// The charts that fit the kind of answers. `labels` are those that curves are drawn of.
pub fn charts(observed: &Observed, summaries: &[Summary], labels: &[String]) -> Result<Vec<Chart>, ReportError> {
    let mut charts = match observed {
        Observed::Classes(classes) => of_classes(classes, labels)?,
        Observed::Similarities(pairs) => vec![scatter(&SIMILARITIES, &pairs.expected, &pairs.predicted)?],
        Observed::Numbers(numbers) => vec![scatter(&NUMBERS, numbers.expected(), numbers.predicted())?],
        Observed::Triplets(triplets) => {
            let (positive, negative): (Vec<f64>, Vec<f64>) =
                triplets.similarities().iter().map(|&[positive, negative]| (positive, negative)).unzip();
            vec![scatter(&TRIPLETS, &positive, &negative)?]
        }
        Observed::Tensors(tensors) => of_tensors(tensors)?,
        Observed::Texts(_) => Vec::new(),
        Observed::Rankings(rankings) => vec![first_ranks(rankings)?],
    };
    // Texts without references have no metric until a program gives one.
    if summaries.len() > 1 && summaries.iter().any(|summary| !summary.metrics.is_empty()) {
        charts.push(forest(summaries)?);
    }
    Ok(charts)
}

/// Answered beside right numbers, of each output.
fn of_tensors(tensors: &Tensors) -> Result<Vec<Chart>, ReportError> {
    let outputs: Vec<&str> = tensors.outputs().take(MOST_CURVES).collect();
    let several = outputs.len() > 1;
    let chart = |output: &str| {
        let numbers = (0..tensors.n_cases()).flat_map(|idx| tensors.case(idx, Some(output)));
        let (expected, predicted): (Vec<f64>, Vec<f64>) = numbers.unzip();
        let title = if several { format!("{}: {}", NUMBERS.title, name(output)) } else { NUMBERS.title.to_owned() };
        let point = "A point a number: the right one, and the model's.";
        scatter(&Scatter { title: &title, point, ..NUMBERS }, &expected, &predicted)
    };
    outputs.into_iter().map(chart).collect()
}

fn of_classes(classes: &Classes, labels: &[String]) -> Result<Vec<Chart>, ReportError> {
    let shown = commonest(classes);
    let position = |name: &String| classes.labels().iter().position(|label| label == name);
    let of_curves: Vec<usize> = shown
        .iter()
        .copied()
        .filter(|label| labels.iter().filter_map(position).any(|l| l == *label))
        .take(MOST_CURVES)
        .collect();
    let mut charts = vec![reliability_diagram(classes)?, confusion(classes, &shown)?];
    charts.extend(curves(&ROC, classes, &of_curves)?);
    charts.extend(curves(&PRECISION_RECALL, classes, &of_curves)?);
    Ok(charts)
}

/// Labels that are expected or answered, the most often expected first.
fn commonest(classes: &Classes) -> Vec<usize> {
    let n_expected = |label: usize| classes.expected().iter().filter(|&&expected| expected == label).count();
    let occurs = |label: &usize| n_expected(*label) > 0 || classes.predicted().contains(label);
    let mut labels: Vec<usize> = (0..classes.labels().len()).filter(occurs).collect();
    labels.sort_by_key(|&label| std::cmp::Reverse(n_expected(label)));
    labels
}

fn name(text: &str) -> String {
    one_line(text, MOST_NAME_CHARS)
}

/// Draws on an SVG of `size`, which gets a title and a description.
fn picture(
    title: &str,
    description: &str,
    size: (u32, u32),
    draw: impl FnOnce(&Area<'_>) -> Drawn,
) -> Result<String, ReportError> {
    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
    let drawn = draw(&area).and_then(|()| area.present().map_err(told));
    drop(area);
    drawn.map_err(|error| ReportError::Chart(title.to_owned(), error.to_string()))?;
    let Some((head, body)) = svg.split_once('>') else {
        return Err(ReportError::Chart(title.to_owned(), "it is no SVG".to_owned()));
    };
    let [title, description] = [title, description].map(|text| minijinja::HtmlEscape(text).to_string());
    Ok(format!("{head} role=\"img\"><title>{title}</title><desc>{description}</desc>{body}"))
}

/// A chart whose picture is named by its title and description.
fn chart(
    title: &str,
    description: String,
    size: (u32, u32),
    table: (Vec<String>, Vec<Vec<String>>),
    draw: impl FnOnce(&Area<'_>) -> Drawn,
) -> Result<Chart, ReportError> {
    let svg = picture(title, &description, size, draw)?;
    let (header, rows) = table;
    Ok(Chart { title: title.to_owned(), description, svg, header, rows })
}

fn columns<const N: usize>(names: [&str; N]) -> Vec<String> {
    names.map(str::to_owned).to_vec()
}

fn font(size: u32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&INK)
}

fn anchored(size: u32, horizontal: HPos, vertical: VPos) -> TextStyle<'static> {
    font(size).pos(Pos::new(horizontal, vertical))
}

/// About how many numbers stand along the upright axis.
#[derive(Clone, Copy)]
struct Ticks(usize);

impl Ticks {
    const FEW: Self = Self(2);
    const MANY: Self = Self(6);
}

/// A number on an axis: counts have no fraction, and shares need no more than two digits of one.
fn short(value: f64) -> String {
    if value.abs() >= 2.0 && value.fract().abs() < 1e-9 { format!("{value:.0}") } else { rounded(value) }
}

fn rounded(value: f64) -> String {
    format!("{:?}", (value * 1e4).round() / 1e4)
}

/// A plane over `x` and `y` with named axes.
fn plane<'a, 'b>(
    area: &'b Area<'a>,
    [left, right]: [f64; 2],
    [low, high]: [f64; 2],
    [x_name, y_name]: [&str; 2],
    ticks: Ticks,
) -> Result<Plane<'a, 'b>, Box<dyn Error>> {
    let mut builder = ChartBuilder::on(area);
    builder.margin(10).margin_right(18).x_label_area_size(44).y_label_area_size(54);
    let mut chart = builder.build_cartesian_2d(left..right, low..high).map_err(told)?;
    let mut mesh = chart.configure_mesh();
    mesh.light_line_style(TRANSPARENT).bold_line_style(LINE).axis_style(SOFT);
    mesh.label_style(font(14)).axis_desc_style(font(14)).x_labels(6).y_labels(ticks.0);
    mesh.y_label_formatter(&|value| short(*value));
    mesh.x_desc(x_name).y_desc(y_name).draw().map_err(told)?;
    Ok(chart)
}

/// The error without the borrow of what it happened to.
fn told(error: impl Error) -> Box<dyn Error> {
    error.to_string().into()
}

fn reliability_diagram(classes: &Classes) -> Result<Chart, ReportError> {
    let confidence = confidences(classes);
    let bins = reliability(&classes.correct(), &confidence, N_BINS);
    let description =
        "Cases by the score of the answered label. Points on the diagonal are as often right as their score \
                       says; below it the model is too sure. The bars count the cases."
            .to_owned();
    let row = |bin: &ReliabilityBin| {
        vec![bin.n_cases.to_string(), format!("{:.4}", bin.confidence), format!("{:.4}", bin.right)]
    };
    let table = (columns(["cases", "mean score", "share right"]), bins.iter().map(row).collect());
    chart("Reliability", description, SIZE, table, |area| {
        let (upper, lower) = area.split_vertically(SIZE.1 * 7 / 10);
        let mut plot = plane(&upper, UNIT, UNIT, ["", "share right"], Ticks::MANY)?;
        plot.draw_series(DashedLineSeries::new([(0.0, 0.0), (1.0, 1.0)], 5, 5, SOFT.into())).map_err(told)?;
        let points: Vec<(f64, f64)> = bins.iter().map(|bin| (bin.confidence, bin.right)).collect();
        plot.draw_series(LineSeries::new(points.iter().copied(), MAIN.stroke_width(2))).map_err(told)?;
        plot.draw_series(points.iter().map(|&at| Circle::new(at, 4, MAIN.filled()))).map_err(told)?;
        let most = bins.iter().map(|bin| bin.n_cases).max().unwrap_or(1) as f64;
        let mut counts = plane(&lower, UNIT, [0.0, most], ["score of the answered label", "cases"], Ticks::FEW)?;
        let bar = |bin: &ReliabilityBin| {
            let left = ((bin.confidence * N_BINS as f64).ceil().max(1.0) - 1.0) / N_BINS as f64;
            let corners = [(left + 0.005, 0.0), (left + 0.095, bin.n_cases as f64)];
            Rectangle::new(corners, MAIN.mix(0.5).filled())
        };
        counts.draw_series(bins.iter().map(bar)).map_err(told)?;
        Ok(())
    })
}

/// The score of the answered label.
fn confidences(classes: &Classes) -> Vec<f64> {
    let scores: Vec<Vec<f64>> = (0..classes.labels().len()).map(|label| classes.scores_of(label)).collect();
    classes.predicted().iter().enumerate().map(|(idx, &label)| scores[label][idx]).collect()
}

fn confusion(classes: &Classes, labels: &[usize]) -> Result<Chart, ReportError> {
    let (shown, rest) = labels.split_at(labels.len().min(MOST_LABELS));
    let place = |label: usize| shown.iter().position(|&other| other == label).unwrap_or(shown.len());
    let n = shown.len() + usize::from(!rest.is_empty());
    let mut counts = vec![vec![0usize; n]; n];
    for (&expected, &predicted) in classes.expected().iter().zip(classes.predicted()) {
        counts[place(expected)][place(predicted)] += 1;
    }
    let label = |&label: &usize| classes.labels()[label].clone();
    let names: Vec<String> =
        shown.iter().map(label).chain((!rest.is_empty()).then(|| format!("{} others", rest.len()))).collect();
    let others = if rest.is_empty() { "" } else { " The labels expected least are summed." };
    let description = format!(
        "Rows are the right labels, columns the answered ones; a darker cell is a larger share of its row.{others}"
    );
    let header = std::iter::once("expected \\ answered".to_owned()).chain(names.iter().map(|name| one_line(name, 80)));
    let row = |(name, counts): (&String, &Vec<usize>)| {
        std::iter::once(one_line(name, 80)).chain(counts.iter().map(usize::to_string)).collect()
    };
    let table = (header.collect(), names.iter().zip(&counts).map(row).collect());
    chart("Confusion", description, SIZE, table, |area| draw_confusion(area, &names, &counts))
}

fn draw_confusion(area: &Area<'_>, names: &[String], counts: &[Vec<usize>]) -> Drawn {
    let (left, top) = (132, 34);
    let n = names.len() as i32;
    let (width, height) = ((SIZE.0 as i32 - left - 12) / n, (SIZE.1 as i32 - top - 12) / n);
    let size = (height * 2 / 5).clamp(9, 15) as u32;
    for (row, name) in names.iter().enumerate() {
        let at = (left - 8, top + height * row as i32 + height / 2);
        area.draw(&Text::new(self::name(name), at, anchored(size, HPos::Right, VPos::Center))).map_err(told)?;
        let n_chars = (width as usize / 8).clamp(2, MOST_NAME_CHARS);
        let at = (left + width * row as i32 + width / 2, top - 8);
        area.draw(&Text::new(one_line(name, n_chars), at, anchored(size.min(13), HPos::Center, VPos::Bottom)))
            .map_err(told)?;
        let total = counts[row].iter().sum::<usize>().max(1);
        for (column, &count) in counts[row].iter().enumerate() {
            let corner = (left + width * column as i32, top + height * row as i32);
            // No darker than text can be read on, in either colour scheme.
            let shade = 0.55 * count as f64 / total as f64;
            let cell = [corner, (corner.0 + width - 2, corner.1 + height - 2)];
            area.draw(&Rectangle::new(cell, LINE.mix(0.4).filled())).map_err(told)?;
            area.draw(&Rectangle::new(cell, MAIN.mix(shade).filled())).map_err(told)?;
            let at = (corner.0 + width / 2, corner.1 + height / 2);
            area.draw(&Text::new(count.to_string(), at, anchored(size, HPos::Center, VPos::Center))).map_err(told)?;
        }
    }
    Ok(())
}

/// A kind of curve of one label against the others.
struct CurveKind {
    title: &'static str,
    axes: [&'static str; 2],
    reading: &'static str,
    points: fn(&[bool], &[f64]) -> Vec<CurvePoint>,
}

const ROC: CurveKind = CurveKind {
    title: "ROC",
    axes: ["false positive rate", "true positive rate"],
    reading: "Each label against the others, by its score. The nearer to the upper left corner, the better.",
    points: roc_curve,
};
const PRECISION_RECALL: CurveKind = CurveKind {
    title: "Precision and recall",
    axes: ["recall", "precision"],
    reading: "Each label against the others, by its score. The nearer to the upper right corner, the better.",
    points: precision_recall_curve,
};

/// `None` where no label has both cases and others.
fn curves(kind: &CurveKind, classes: &Classes, labels: &[usize]) -> Result<Option<Chart>, ReportError> {
    let of_label = |&label: &usize| {
        let is_label: Vec<bool> = classes.expected().iter().map(|&expected| expected == label).collect();
        (classes.labels()[label].clone(), thin(&(kind.points)(&is_label, &classes.scores_of(label)), MOST_CURVE_POINTS))
    };
    let curves: Vec<(String, Vec<CurvePoint>)> =
        labels.iter().map(of_label).filter(|(_, points)| !points.is_empty()).collect();
    if curves.is_empty() {
        return Ok(None);
    }
    let description = format!("{} At most {MOST_CURVES} labels, {MOST_CURVE_POINTS} points of each.", kind.reading);
    let row = |name: &String, point: &CurvePoint| {
        vec![one_line(name, 80), format!("{:.4}", point.x), format!("{:.4}", point.y)]
    };
    let rows = curves.iter().flat_map(|(name, points)| points.iter().map(move |point| row(name, point))).collect();
    let table = (columns(["label", kind.axes[0], kind.axes[1]]), rows);
    let drawn = chart(kind.title, description, SIZE, table, |area| {
        let mut plot = plane(area, UNIT, UNIT, kind.axes, Ticks::MANY)?;
        for ((name, points), color) in curves.iter().zip(CURVES) {
            let points = points.iter().map(|point| (point.x, point.y));
            let line = plot.draw_series(LineSeries::new(points, color.stroke_width(2))).map_err(told)?;
            line.label(self::name(name))
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
        }
        let mut legend = plot.configure_series_labels();
        legend.position(SeriesLabelPosition::LowerRight).label_font(font(13)).border_style(LINE);
        legend.draw().map_err(told)
    })?;
    Ok(Some(drawn))
}

/// The main metric on all cases and on each slice, with its interval.
fn forest(summaries: &[Summary]) -> Result<Chart, ReportError> {
    let rows: Vec<(&str, usize, &highroad_eval::Measured)> = summaries
        .iter()
        .filter_map(|summary| {
            Some((summary.slice.as_deref().unwrap_or("all cases"), summary.n_cases, summary.metrics.first()?))
        })
        .take(MOST_SLICES + 1)
        .collect();
    let metric = rows.first().map_or_else(String::new, |(.., measured)| metric_name(measured));
    let description = format!(
        "Value and 95 % interval on all cases and on each slice, at most {MOST_SLICES}. A slice whose interval is wide has few cases."
    );
    let row = |(name, n_cases, measured): &(&str, usize, &highroad_eval::Measured)| {
        let [low, high] = measured.interval;
        vec![
            one_line(name, 80),
            n_cases.to_string(),
            format!("{:.4}", measured.value),
            format!("{low:.4}"),
            format!("{high:.4}"),
        ]
    };
    let table = (columns(["cases", "n", "value", "low", "high"]), rows.iter().map(row).collect());
    let size = (SIZE.0, 70 + ROW_HEIGHT * rows.len() as u32);
    chart(&format!("{metric} by slice"), description, size, table, |area| {
        let (names, plot) = area.split_horizontally(170);
        let ends = || rows.iter().flat_map(|(.., measured)| measured.interval).filter(|end| end.is_finite());
        let (least, most) = (ends().fold(f64::INFINITY, f64::min), ends().fold(f64::NEG_INFINITY, f64::max));
        let room = ((most - least) * 0.05).max(0.005);
        let mut builder = ChartBuilder::on(&plot);
        builder.margin(10).margin_left(0).margin_right(18).x_label_area_size(44);
        let n = rows.len() as f64;
        let mut plot = builder.build_cartesian_2d(least - room..most + room, 0.0..n).map_err(told)?;
        let mut mesh = plot.configure_mesh();
        mesh.disable_y_mesh().light_line_style(TRANSPARENT).bold_line_style(LINE).axis_style(SOFT);
        mesh.label_style(font(14))
            .axis_desc_style(font(14))
            .x_labels(5)
            .x_desc(metric.as_str())
            .draw()
            .map_err(told)?;
        for (idx, (name, n_cases, measured)) in rows.iter().enumerate() {
            let y = n - idx as f64 - 0.5;
            let [low, high] = measured.interval.map(|end| end.clamp(least, most));
            let color = if idx == 0 { INK } else { MAIN };
            plot.draw_series([PathElement::new([(low, y), (high, y)], color.stroke_width(2))]).map_err(told)?;
            plot.draw_series([Circle::new((measured.value, y), 4, color.filled())]).map_err(told)?;
            let at = (162, plot.backend_coord(&(least, y)).1);
            let label = format!("{} ({n_cases})", self::name(name));
            names.draw(&Text::new(label, at, anchored(14, HPos::Right, VPos::Center))).map_err(told)?;
        }
        Ok(())
    })
}

/// A candidate's latency as a multiple of the stable version's, at each percentile.
pub fn ratio_chart(ratios: &[Percentile]) -> Result<Chart, ReportError> {
    let rows: Vec<&Percentile> = ratios.iter().filter(|ratio| ratio.value.is_finite()).collect();
    let description = "The candidate's latency as a multiple of the stable version's on the same requests, with its 95 % interval where \
                       enough requests were timed. Left of the dashed line it is faster."
        .to_owned();
    let row = |ratio: &&Percentile| {
        let bound = |at: usize| ratio.interval.map_or("-".to_owned(), |interval| format!("{:.3}", interval[at]));
        vec![format!("p{}", ratio.percentile), format!("{:.3}", ratio.value), bound(0), bound(1)]
    };
    let table = (columns(["latency", "times", "low", "high"]), rows.iter().map(row).collect());
    let size = (SIZE.0, 70 + ROW_HEIGHT * rows.len() as u32);
    chart("Latency, candidate over stable", description, size, table, |area| {
        let (names, plot) = area.split_horizontally(80);
        let ends = || rows.iter().flat_map(|ratio| ratio.interval.unwrap_or([ratio.value; 2])).chain([1.0]);
        let (least, most) = (ends().fold(f64::INFINITY, f64::min), ends().fold(f64::NEG_INFINITY, f64::max));
        let (room, n) = (((most - least) * 0.05).max(0.01), rows.len() as f64);
        let mut builder = ChartBuilder::on(&plot);
        builder.margin(10).margin_left(0).margin_right(18).x_label_area_size(44);
        let mut plot = builder.build_cartesian_2d(least - room..most + room, 0.0..n).map_err(told)?;
        let mut mesh = plot.configure_mesh();
        mesh.disable_y_mesh().light_line_style(TRANSPARENT).bold_line_style(LINE).axis_style(SOFT);
        mesh.label_style(font(14)).axis_desc_style(font(14)).x_labels(5).x_desc("times").draw().map_err(told)?;
        plot.draw_series(DashedLineSeries::new([(1.0, 0.0), (1.0, n)], 5, 5, SOFT.into())).map_err(told)?;
        for (idx, ratio) in rows.iter().enumerate() {
            let y = n - idx as f64 - 0.5;
            if let Some([low, high]) = ratio.interval {
                plot.draw_series([PathElement::new([(low, y), (high, y)], MAIN.stroke_width(2))]).map_err(told)?;
            }
            plot.draw_series([Circle::new((ratio.value, y), 4, MAIN.filled())]).map_err(told)?;
            let at = (72, plot.backend_coord(&(least, y)).1);
            names
                .draw(&Text::new(format!("p{}", ratio.percentile), at, anchored(14, HPos::Right, VPos::Center)))
                .map_err(told)?;
        }
        Ok(())
    })
}

/// What a scatter plot is of.
struct Scatter<'a> {
    title: &'a str,
    /// A point, in words.
    point: &'static str,
    axes: [&'static str; 2],
}

const SIMILARITIES: Scatter<'_> = Scatter {
    title: "Similarity, people and model",
    point: "A point a pair: the similarity people gave it, and the model's.",
    axes: ["people", "model"],
};
const NUMBERS: Scatter<'_> = Scatter {
    title: "Number, right and answered",
    point: "A point a case: the right number, and the model's.",
    axes: ["right", "answered"],
};
const TRIPLETS: Scatter<'_> = Scatter {
    title: "Similarity to the anchor",
    point: "A point a triplet: how close the positive text is, and the negative one; right are those below the diagonal.",
    axes: ["positive", "negative"],
};

fn scatter(what: &Scatter<'_>, across: &[f64], up: &[f64]) -> Result<Chart, ReportError> {
    let all: Vec<(f64, f64)> = across.iter().copied().zip(up.iter().copied()).collect();
    let points = thin(&all, MOST_SCATTER_POINTS);
    let description = format!("{} {} of {} are drawn.", what.point, points.len(), all.len());
    let row = |(across, up): &(f64, f64)| vec![format!("{across:.4}"), format!("{up:.4}")];
    let table = (columns(what.axes), points.iter().map(row).collect());
    chart(what.title, description, SIZE, table, |area| {
        let axis = |of: fn(&(f64, f64)) -> f64| {
            let (low, high) = points
                .iter()
                .map(of)
                .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
            let room = ((high - low) * 0.04).max(0.01);
            [low - room, high + room]
        };
        let mut plot = plane(area, axis(|point| point.0), axis(|point| point.1), what.axes, Ticks::MANY)?;
        plot.draw_series(points.iter().map(|&at| Circle::new(at, 3, MAIN.mix(0.5).filled()))).map_err(told)?;
        Ok(())
    })
}

fn first_ranks(rankings: &Rankings) -> Result<Chart, ReportError> {
    let mut counts = [0usize; MOST_RANKS + 2];
    for idx in 0..rankings.n_cases() {
        counts[rankings.best_rank(idx).map_or(MOST_RANKS + 1, |rank| rank.min(MOST_RANKS + 1) - 1)] += 1;
    }
    let name = |place: usize| match place {
        MOST_RANKS => format!("> {MOST_RANKS}"),
        place if place > MOST_RANKS => "none".to_owned(),
        place => (place + 1).to_string(),
    };
    let description =
        "Queries by the rank of the first of their most relevant documents; `none` are queries without a relevant one."
            .to_owned();
    let rows = counts.iter().enumerate().map(|(place, count)| vec![name(place), count.to_string()]).collect();
    chart("Rank of the best document", description, SIZE, (columns(["rank", "queries"]), rows), |area| {
        let most = counts.iter().copied().max().unwrap_or(1).max(1) as f64;
        let mut builder = ChartBuilder::on(area);
        builder.margin(10).x_label_area_size(44).y_label_area_size(54);
        let n = counts.len() as f64;
        let mut plot = builder.build_cartesian_2d(0.0..n, 0.0..most * 1.08).map_err(told)?;
        let mut mesh = plot.configure_mesh();
        mesh.disable_x_mesh().light_line_style(TRANSPARENT).bold_line_style(LINE).axis_style(SOFT);
        mesh.label_style(font(14))
            .axis_desc_style(font(14))
            .y_labels(6)
            .y_label_formatter(&|count| short(*count))
            .x_labels(0)
            .x_desc("rank")
            .y_desc("queries");
        mesh.draw().map_err(told)?;
        for (place, &count) in counts.iter().enumerate() {
            let (left, count) = (place as f64, count as f64);
            plot.draw_series([Rectangle::new([(left + 0.1, 0.0), (left + 0.9, count)], MAIN.filled())])
                .map_err(told)?;
            let (x, y) = plot.backend_coord(&(left + 0.5, 0.0));
            area.draw(&Text::new(name(place), (x, y + 8), anchored(14, HPos::Center, VPos::Top))).map_err(told)?;
            let (x, y) = plot.backend_coord(&(left + 0.5, count));
            area.draw(&Text::new(count.to_string(), (x, y - 4), anchored(12, HPos::Center, VPos::Bottom)))
                .map_err(told)?;
        }
        Ok(())
    })
}
