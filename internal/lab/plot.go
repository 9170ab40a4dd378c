package lab

import (
	"fmt"
	"image/color"
	"io"
	"math"
	"strconv"
	"time"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// A Mark is a moment that a plot shows.
type Mark struct {
	At   time.Time
	Text string
	Loss bool // something was taken away; otherwise something came back
}

// Where the plot's latencies end. An answer that took longer is drawn at the edge.
const (
	plotLeastMS = 0.5
	plotMostMS  = 5000
)

// Colours that people with any colour vision tell apart (Okabe and Ito).
var (
	trackColours = []color.Color{
		color.RGBA{0, 114, 178, 255}, color.RGBA{230, 159, 0, 255}, color.RGBA{0, 158, 115, 255}, color.RGBA{204, 121, 167, 255}, color.RGBA{86, 180, 233, 255},
	}
	lossColour = color.RGBA{213, 94, 0, 255}
	gainColour = color.RGBA{110, 110, 110, 255}
)

// Plot draws what each client felt over time as SVG: a dot an answer, at the height of its latency on a logarithmic scale; failed requests
// as crosses at the upper edge; a vertical line an event, numbered, with its text below the plot. Its width is that of a README page.
func Plot(w io.Writer, title string, tracks []*Track, marks []Mark) error {
	p := plot.New()
	p.BackgroundColor = color.White
	p.Y.Label.Text = "latency"
	p.X.Label.Text = "time in seconds"
	for _, a := range []*plot.Axis{&p.X, &p.Y} {
		style(&a.Label.TextStyle, 11)
		style(&a.Tick.Label, 11)
	}
	p.Y.Scale = plot.LogScale{}
	p.Y.Min, p.Y.Max = plotLeastMS, plotMostMS
	p.Y.Tick.Marker = plot.ConstantTicks{
		{Value: 1, Label: "1 ms"}, {Value: 10, Label: "10 ms"}, {Value: 100, Label: "100 ms"}, {Value: 1000, Label: "1 s"},
	}
	p.Y.Tick.Label.XAlign = text.XRight

	begin, end, ok := span(tracks)
	if !ok {
		return fmt.Errorf("plot %q: no answers", title)
	}
	seconds := func(ns int64) float64 { return float64(ns-begin) / 1e9 }
	p.X.Min, p.X.Max = 0, seconds(end)
	addGrid(p)
	for i, t := range tracks {
		if err := addTrack(p, t, trackColours[i%len(trackColours)], seconds); err != nil {
			return err
		}
	}
	last := math.Inf(-1)
	for i, m := range marks {
		at := seconds(m.At.UnixNano())
		// Numbers of moments that are close together stand side by side.
		label := max(at, last+(p.X.Max-p.X.Min)*0.014)
		last = label
		if err := addMark(p, strconv.Itoa(i+1), m, at, label); err != nil {
			return err
		}
	}
	const width, plotHeight, line = 830 * vg.Inch / 96, 330 * vg.Inch / 96, 17 * vg.Inch / 96
	captions := vg.Length(len(marks)) * line
	canvas := vgsvg.New(width, plotHeight+captions+2*line)
	dc := draw.New(canvas)
	dc.SetColor(color.White)
	dc.Fill(dc.Path())
	p.Draw(draw.Crop(dc, vg.Points(4), -vg.Points(14), captions+line/2, -line*1.6))
	drawHeader(dc, title, tracks)
	drawCaptions(dc, marks, seconds, captions, line)
	_, err := canvas.WriteTo(w)
	return err
}

func style(s *text.Style, size float64) {
	s.Font = font.From(font.Font{Typeface: "Liberation", Variant: "Sans"}, font.Length(size))
	s.Handler = plot.DefaultTextHandler
}

func span(tracks []*Track) (begin, end int64, ok bool) {
	begin = math.MaxInt64
	for _, t := range tracks {
		for _, p := range t.Points() {
			begin, end, ok = min(begin, p.Sent), max(end, p.Done), true
		}
	}
	return begin, end, ok
}

func addGrid(p *plot.Plot) {
	grid := plotter.NewGrid()
	grid.Vertical.Width = 0
	grid.Horizontal.Color = color.Gray{225}
	p.Add(grid)
}

// addTrack draws the good answers and the failed requests.
func addTrack(p *plot.Plot, t *Track, c color.Color, seconds func(int64) float64) error {
	var good, bad plotter.XYs
	for _, pt := range t.Points() {
		if pt.OK {
			v := min(max(float64(pt.Done-pt.Sent)/1e6, plotLeastMS), plotMostMS)
			good = append(good, plotter.XY{X: seconds(pt.Done), Y: v})
		} else {
			bad = append(bad, plotter.XY{X: seconds(pt.Done), Y: plotMostMS * 0.85})
		}
	}
	if len(good)+len(bad) == 0 {
		return nil
	}
	p.Add(dots{thin(good), c})
	if len(bad) > 0 {
		crosses, err := plotter.NewScatter(thin(bad))
		if err != nil {
			return err
		}
		crosses.GlyphStyle = draw.GlyphStyle{Color: c, Radius: vg.Points(2), Shape: draw.CrossGlyph{}}
		p.Add(crosses)
	}
	return nil
}

// dots are squares of one colour, all drawn as one path: a quarter of the bytes that a path for each takes.
type dots struct {
	at plotter.XYs
	color.Color
}

const dotSize = 1.8 // points

// Plot implements plot.Plotter.
func (d dots) Plot(c draw.Canvas, p *plot.Plot) {
	x, y := p.Transforms(&c)
	var path vg.Path
	for _, xy := range d.at {
		at := vg.Point{X: x(xy.X), Y: y(xy.Y)}
		path.Move(vg.Point{X: at.X - dotSize/2, Y: at.Y})
		path.Line(vg.Point{X: at.X + dotSize/2, Y: at.Y})
	}
	c.SetColor(d.Color)
	c.SetLineWidth(dotSize)
	c.SetLineDash(nil, 0)
	c.Stroke(path)
}

// drawHeader writes the title and, at the right end of its line, which colour is which client.
func drawHeader(dc draw.Canvas, title string, tracks []*Track) {
	var s text.Style
	style(&s, 13)
	s.Color, s.YAlign = color.Black, text.YCenter
	y := dc.Max.Y - vg.Points(12)
	dc.FillText(s, vg.Point{X: dc.Min.X + vg.Points(16), Y: y}, title)
	style(&s, 11)
	s.YAlign = text.YCenter
	x := dc.Max.X - vg.Points(14)
	for i := len(tracks) - 1; i >= 0; i-- {
		x -= s.Width(tracks[i].Name)
		dc.FillText(s, vg.Point{X: x, Y: y}, tracks[i].Name)
		x -= vg.Points(7)
		dc.DrawGlyph(draw.GlyphStyle{Color: trackColours[i%len(trackColours)], Radius: vg.Points(3.2), Shape: draw.CircleGlyph{}}, vg.Point{X: x, Y: y})
		x -= vg.Points(10)
	}
}

// thin leaves out dots that would cover each other: of those in one cell of a fine raster the first is drawn. The picture stays the same
// and its file is a tenth of the size.
func thin(all plotter.XYs) plotter.XYs {
	if len(all) == 0 {
		return nil
	}
	type cell struct{ x, y int }
	seen := map[cell]bool{}
	first, last := all[0].X, all[len(all)-1].X
	perX := 500 / max(last-first, 1e-9)
	var out plotter.XYs
	for _, p := range all {
		c := cell{int((p.X - first) * perX), int(math.Log10(p.Y) * 50)}
		if !seen[c] {
			seen[c] = true
			out = append(out, p)
		}
	}
	return out
}

// addMark draws a line at x and its number, centred at label, above it.
func addMark(p *plot.Plot, name string, m Mark, x, label float64) error {
	c := gainColour
	if m.Loss {
		c = lossColour
	}
	line, err := plotter.NewLine(plotter.XYs{{X: x, Y: plotLeastMS}, {X: x, Y: plotMostMS}})
	if err != nil {
		return err
	}
	line.Color, line.Width = c, vg.Points(1.2)
	if !m.Loss {
		line.Dashes = []vg.Length{vg.Points(4), vg.Points(3)}
	}
	number, err := plotter.NewLabels(plotter.XYLabels{XYs: plotter.XYs{{X: label, Y: plotMostMS}}, Labels: []string{name}})
	if err != nil {
		return err
	}
	style(&number.TextStyle[0], 11)
	number.TextStyle[0].Color = c
	number.TextStyle[0].XAlign = text.XCenter
	number.TextStyle[0].YAlign = text.YBottom
	p.Add(line, number)
	return nil
}

func drawCaptions(dc draw.Canvas, marks []Mark, seconds func(int64) float64, height, line vg.Length) {
	for i, m := range marks {
		var s text.Style
		style(&s, 11)
		s.Color = gainColour
		if m.Loss {
			s.Color = lossColour
		}
		s.YAlign = text.YTop
		caption := fmt.Sprintf("%d   %.1f s   %s", i+1, seconds(m.At.UnixNano()), m.Text)
		dc.FillText(s, vg.Point{X: dc.Min.X + vg.Points(16), Y: dc.Min.Y + height - vg.Length(i)*line + line/4}, caption)
	}
}
