package controller

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

const (
	// maxEvents is how many events are kept.
	maxEvents = 200
	// maxEventText is the bytes kept of one: with maxEvents, what all may take.
	maxEventText = 400
)

// event is something that an operator may want to know of afterwards.
type event struct {
	Time  time.Time `json:"time"` // of the newest, if there were several
	Level string    `json:"level"`
	Text  string    `json:"text"`
	Times int       `json:"times"` // in a row
}

// events are the newest lines of the log, of level info and above, whatever of it is
// written: for the web page, as nobody has the logs of all machines at hand. Warnings
// that repeat are one event, so that they do not push out what led to them.
type events struct {
	mu     sync.Mutex // guards what follows
	ring   [maxEvents]event
	oldest int
	n      int
}

// add enters an event.
func (e *events) add(ev event) {
	if len(ev.Text) > maxEventText {
		ev.Text = strings.ToValidUTF8(ev.Text[:maxEventText], "") + "..."
	}
	ev.Times = 1
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.n > 0 {
		newest := &e.ring[(e.oldest+e.n-1)%maxEvents]
		if newest.Level == ev.Level && newest.Text == ev.Text {
			newest.Time = ev.Time
			newest.Times++
			return
		}
	}
	if e.n == maxEvents {
		e.oldest = (e.oldest + 1) % maxEvents
		e.n--
	}
	e.ring[(e.oldest+e.n)%maxEvents] = ev
	e.n++
}

// list returns the events, the newest first.
func (e *events) list() []event {
	e.mu.Lock()
	defer e.mu.Unlock()
	all := make([]event, e.n)
	for i := range all {
		all[i] = e.ring[(e.oldest+e.n-1-i)%maxEvents]
	}
	return all
}

// Log is where lines about this node go: to the log of its Config, and to the events of
// its web page.
func (n *Node) Log() *zap.Logger { return n.log }

// keep has what goes to core become events, too.
func (e *events) keep(core zapcore.Core) zapcore.Core {
	return zapcore.NewTee(core, eventCore{events: e})
}

// eventCore makes events of log lines.
type eventCore struct {
	events *events
	with   []zapcore.Field
}

var _ zapcore.Core = eventCore{}

func (eventCore) Enabled(l zapcore.Level) bool { return l >= zapcore.InfoLevel }
func (eventCore) Sync() error                  { return nil }

func (c eventCore) With(fields []zapcore.Field) zapcore.Core {
	c.with = append(c.with[:len(c.with):len(c.with)], fields...)
	return c
}

func (c eventCore) Check(line zapcore.Entry, to *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(line.Level) {
		return to.AddCore(line, c)
	}
	return to
}

// Write has the fields behind the message, as people read them.
func (c eventCore) Write(line zapcore.Entry, fields []zapcore.Field) error {
	text := line.Message
	for _, fs := range [][]zapcore.Field{c.with, fields} {
		for _, f := range fs {
			enc := zapcore.NewMapObjectEncoder()
			f.AddTo(enc)
			if v, ok := enc.Fields[f.Key]; ok { // else it says that there is nothing, as an error of nil does
				text += fmt.Sprintf("; %s %v", f.Key, v)
			}
		}
	}
	c.events.add(event{Time: line.Time, Level: line.Level.String(), Text: text})
	return nil
}
