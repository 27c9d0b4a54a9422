package verify

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"math"
	"strings"
	"time"
)

//go:embed page.html
var pageText string

var page = template.Must(template.New("page").Funcs(template.FuncMap{"seconds": seconds}).Parse(pageText))

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }

// HTML writes the report as a page that needs nothing else.
func (rep *Report) HTML(w io.Writer) error {
	data := struct {
		*Report
		Chart   chart
		Stories []drawnStory
	}{rep, rep.chart(), nil}
	for _, wl := range rep.Workloads {
		for _, c := range wl.Checks {
			if c.Verdict != Held {
				data.Stories = append(data.Stories, drawStory(wl.Name, c))
			}
		}
	}
	return page.Execute(w, data)
}

// width is that of drawings, in their own units.
const width = 900

// box is a rectangle of a drawing.
type box struct {
	X, Y, W, H float64
	What       string
	Class      string
}

// chart is the drawing of the timeline: answers from y 150 up, latencies from 300 up.
type chart struct {
	Width              int
	Bands, Lost        []box
	Answered, P50, P99 string // points
	MostAnswers        int
	MostLatency        string
	Seconds            string
}

func (rep *Report) chart() chart {
	const high = 140.0
	whole := max(rep.Step*time.Duration(len(rep.Timeline)), time.Millisecond)
	x := func(at time.Duration) float64 { return round(width * float64(at) / float64(whole)) }
	c := chart{Width: width, Seconds: fmt.Sprintf("%.0f", whole.Seconds())}
	most, slowest := 1, time.Millisecond
	for _, s := range rep.Timeline {
		most, slowest = max(most, s.Answered, s.Unknown), max(slowest, s.P99)
	}
	const fastest = 100 * time.Microsecond
	latency := func(d time.Duration) float64 {
		return 300 - high*math.Log(float64(max(d, fastest))/float64(fastest))/math.Log(float64(slowest)/float64(fastest))
	}
	var answered, p50, p99 strings.Builder
	for i, s := range rep.Timeline {
		at := x(rep.Step*time.Duration(i) + rep.Step/2)
		fmt.Fprintf(&answered, "%g,%g ", at, round(150-high*float64(s.Answered)/float64(most)))
		if s.Answered > 0 {
			fmt.Fprintf(&p50, "%g,%g ", at, round(latency(s.P50)))
			fmt.Fprintf(&p99, "%g,%g ", at, round(latency(s.P99)))
		}
		if s.Unknown > 0 {
			h := round(max(2, high*float64(s.Unknown)/float64(most)))
			c.Lost = append(c.Lost, box{X: x(rep.Step * time.Duration(i)), Y: 150 - h, W: max(1, x(rep.Step)), H: h})
		}
	}
	c.Answered, c.P50, c.P99 = answered.String(), p50.String(), p99.String()
	c.MostAnswers = int(float64(most) / max(rep.Step.Seconds(), 0.001))
	c.MostLatency = slowest.Round(100 * time.Microsecond).String()
	for _, f := range rep.Faults {
		from := x(f.At)
		c.Bands = append(c.Bands, box{X: from, W: max(1, round(x(f.Until)-from)), What: f.What})
	}
	return c
}

func round(x float64) float64 { return math.Round(x*10) / 10 }

// drawnStory is a check that failed, with a drawing of the commands of its story.
type drawnStory struct {
	Workload      string
	Check         Check
	Rows          []row
	Width, Height int
	From, To      string
}

// row has the commands of a client.
type row struct {
	Client int
	Node   string
	Y      int
	Bars   []box
}

func drawStory(workload string, c Check) drawnStory {
	const left, line = 130.0, 18
	s := drawnStory{Workload: workload, Check: c, Width: width}
	if len(c.Offending) == 0 {
		return s
	}
	// They are sorted by call. One that was not answered goes on to the right end.
	from, to := c.Offending[0].Call, c.Offending[0].Call+time.Microsecond
	for _, o := range c.Offending {
		to = max(to, o.Call, o.Return)
	}
	x := func(at time.Duration) float64 { return left + (width-left)*float64(at-from)/float64(to-from) }
	rows := make(map[int]int)
	for _, o := range c.Offending {
		i, ok := rows[o.Client]
		if !ok {
			i = len(s.Rows)
			rows[o.Client] = i
			s.Rows = append(s.Rows, row{Client: o.Client, Node: o.Node, Y: line*i + 13})
		}
		b := box{X: round(x(o.Call)), Y: float64(line*i + 3), What: o.Text, Class: "op"}
		end := o.Return
		if end == 0 {
			end, b.Class = to, "open"
		}
		b.W = max(2, round(x(end)-b.X))
		s.Rows[i].Bars = append(s.Rows[i].Bars, b)
	}
	s.Height = line*len(s.Rows) + 4
	s.From, s.To = fmt.Sprintf("%.3f s", from.Seconds()), fmt.Sprintf("%.3f s", to.Seconds())
	return s
}
