package main

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/attunekv/attune/consistency"
)

// panel is one diagram of a plot, with both axes logarithmic or linear.
type panel struct {
	b              *bytes.Buffer
	x, y           float64 // of its upper left corner
	w, h           float64
	minX, maxX     float64
	minY, maxY     float64
	logX, logY     bool
	labelX, labelY string
}

// colours of lines, readable on white and by who does not see red and green apart.
var colours = []string{"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"}

// plotSimulation draws two diagrams: the share of controllers that have a write by
// the time since, and the bytes a controller sends against how many there are.
func plotSimulation(reports []consistency.SimReport) []byte {
	var b bytes.Buffer
	fmt.Fprint(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="960" height="400" viewBox="0 0 960 400" font-family="sans-serif" font-size="12">`+"\n")
	fmt.Fprint(&b, `<rect width="960" height="400" fill="white"/>`+"\n")
	plotReach(&b, reports)
	plotBytes(&b, reports)
	fmt.Fprint(&b, "</svg>\n")
	return b.Bytes()
}

func plotReach(b *bytes.Buffer, reports []consistency.SimReport) {
	p := &panel{
		b: b, x: 60, y: 30, w: 370, h: 310, minX: 1, maxX: 10, maxY: 1, logX: true,
		labelX: "time since the write, ms", labelY: "share of the nodes that have it",
	}
	for i := range reports {
		for _, pt := range reports[i].Reach {
			p.maxX = max(p.maxX, math.Pow(10, math.Ceil(math.Log10(millis(pt.After)))))
		}
	}
	p.frame()
	for i := range reports {
		r := &reports[i]
		colour := colours[i%len(colours)]
		var line []float64
		for _, pt := range r.Reach {
			line = append(line, millis(pt.After), pt.Share)
		}
		p.line(colour, line)
		p.text(p.x+p.w-8, p.y+p.h-14-16*float64(len(reports)-1-i), "end", colour, fmt.Sprintf("%d nodes", r.Nodes))
	}
}

func plotBytes(b *bytes.Buffer, reports []consistency.SimReport) {
	p := &panel{
		b: b, x: 540, y: 30, w: 370, h: 310, minX: 1, maxX: 10, minY: 10, maxY: 100, logX: true, logY: true,
		labelX: "nodes", labelY: "bytes a node sends per second",
	}
	sorted := slices.Clone(reports)
	slices.SortFunc(sorted, func(a, c consistency.SimReport) int { return a.Nodes - c.Nodes })
	lines := []struct {
		name string
		of   func(r *consistency.SimReport) float64
	}{
		{"updates", func(r *consistency.SimReport) float64 { return bytesFor(r.Busy, "updates") }},
		{"digests", func(r *consistency.SimReport) float64 { return bytesFor(r.Busy, "digests") }},
		{"idle", func(r *consistency.SimReport) float64 { return bytesFor(r.Idle, "") }},
	}
	for i := range sorted {
		p.maxX = max(p.maxX, math.Pow(10, math.Ceil(math.Log10(float64(sorted[i].Nodes)))))
		for _, l := range lines {
			if y := l.of(&sorted[i]); y > 0 {
				p.maxY = max(p.maxY, math.Pow(10, math.Ceil(math.Log10(y))))
			}
		}
	}
	p.frame()
	for i, l := range lines {
		var line []float64
		for j := range sorted {
			if y := l.of(&sorted[j]); y >= p.minY {
				line = append(line, float64(sorted[j].Nodes), y)
			}
		}
		p.line(colours[i], line)
		for j := 0; j < len(line); j += 2 {
			fmt.Fprintf(b, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`+"\n", p.atX(line[j]), p.atY(line[j+1]), colours[i])
		}
		p.text(p.x+8, p.y+16+16*float64(i), "start", colours[i], l.name)
	}
}

// bytesFor are those for one purpose, or for all.
func bytesFor(ts []consistency.SimTraffic, purpose string) (sum float64) {
	for _, t := range ts {
		if purpose == "" || t.Purpose == purpose {
			sum += t.Bytes
		}
	}
	return sum
}

func millis(d time.Duration) float64 { return max(float64(d)/float64(time.Millisecond), 0.001) }

func (p *panel) atX(x float64) float64 { return p.x + p.w*place(x, p.minX, p.maxX, p.logX) }
func (p *panel) atY(y float64) float64 { return p.y + p.h*(1-place(y, p.minY, p.maxY, p.logY)) }

// place is where v is between low and high, 0 to 1.
func place(v, low, high float64, log bool) float64 {
	if log {
		v, low, high = math.Log10(max(v, low)), math.Log10(low), math.Log10(high)
	}
	return min(max((v-low)/(high-low), 0), 1)
}

// frame draws the axes.
func (p *panel) frame() {
	fmt.Fprintf(p.b, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="none" stroke="#888"/>`+"\n", p.x, p.y, p.w, p.h)
	for _, v := range ticks(p.minX, p.maxX, p.logX) {
		fmt.Fprintf(p.b, `<line x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f" stroke="#ddd"/>`+"\n", p.atX(v), p.atX(v), p.y, p.y+p.h)
		p.text(p.atX(v), p.y+p.h+16, "middle", "#333", tickText(v))
	}
	for _, v := range ticks(p.minY, p.maxY, p.logY) {
		fmt.Fprintf(p.b, `<line x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f" stroke="#ddd"/>`+"\n", p.x, p.x+p.w, p.atY(v), p.atY(v))
		p.text(p.x-6, p.atY(v)+4, "end", "#333", tickText(v))
	}
	p.text(p.x+p.w/2, p.y+p.h+36, "middle", "#333", p.labelX)
	p.text(p.x, p.y-10, "start", "#333", p.labelY)
}

func ticks(low, high float64, log bool) (vs []float64) {
	if !log {
		for i := range 6 {
			vs = append(vs, low+(high-low)*float64(i)/5)
		}
		return vs
	}
	for v := low; v <= high*1.001; v *= 10 {
		vs = append(vs, v)
	}
	return vs
}

func tickText(v float64) string {
	switch {
	case v >= 1e6:
		return fmt.Sprintf("%gM", v/1e6)
	case v >= 1e3:
		return fmt.Sprintf("%gk", v/1e3)
	default:
		return fmt.Sprintf("%.3g", v)
	}
}

// line draws through points, x and y in turn.
func (p *panel) line(colour string, xy []float64) {
	fmt.Fprintf(p.b, `<polyline fill="none" stroke="%s" stroke-width="2" points="`, colour)
	for i := 0; i < len(xy); i += 2 {
		fmt.Fprintf(p.b, "%.1f,%.1f ", p.atX(xy[i]), p.atY(xy[i+1]))
	}
	fmt.Fprint(p.b, "\"/>\n")
}

func (p *panel) text(x, y float64, anchor, colour, s string) {
	fmt.Fprintf(p.b, `<text x="%.1f" y="%.1f" text-anchor="%s" fill="%s">%s</text>`+"\n", x, y, anchor, colour, s)
}
