package controller

import (
	"sync/atomic"
	"time"

	"go.uber.org/zap/zapcore"
)

// LogSample is how much of a log is written when many lines say the same, fields aside:
// the First of each second, and of the others each that is a multiple of Every, or none
// if that is 0. The zero value writes all.
//
// Only what goes on in spite of what happened is left out: a line of level error or
// above is always written.
type LogSample struct{ First, Every int }

// logSample is the LogSample in use.
type logSample struct {
	judge   atomic.Pointer[zapcore.Core] // decides, and writes nothing; nil: all is written
	in      LogSample                    // what judge goes by; of the goroutine that calls set
	dropped atomic.Uint64                // lines
}

// set goes over to rule.
func (l *logSample) set(rule LogSample) {
	if rule == l.in {
		return // what it has counted in this second counts
	}
	if l.in = rule; rule == (LogSample{}) {
		l.judge.Store(nil)
		return
	}
	judge := zapcore.NewSamplerWithOptions(yes{}, time.Second, rule.First, rule.Every, zapcore.SamplerHook(func(_ zapcore.Entry, d zapcore.SamplingDecision) {
		if d&zapcore.LogDropped != 0 {
			l.dropped.Add(1)
		}
	}))
	l.judge.Store(&judge)
}

// thin has core get no more than is to be written.
func (l *logSample) thin(core zapcore.Core) zapcore.Core { return thinned{core, l} }

// thinned is a core that is asked only for lines which are to be written.
type thinned struct {
	zapcore.Core
	rule *logSample
}

func (c thinned) With(fields []zapcore.Field) zapcore.Core {
	return thinned{c.Core.With(fields), c.rule}
}

func (c thinned) Check(line zapcore.Entry, to *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if judge := c.rule.judge.Load(); judge != nil && line.Level < zapcore.ErrorLevel && c.Enabled(line.Level) && (*judge).Check(line, nil) == nil {
		return to
	}
	return c.Core.Check(line, to)
}

// yes is a core that wants all, for the sampler to be asked what it lets through.
type yes struct{ zapcore.Core }

var letThrough = new(zapcore.CheckedEntry)

func (yes) Enabled(zapcore.Level) bool                                       { return true }
func (yes) Check(zapcore.Entry, *zapcore.CheckedEntry) *zapcore.CheckedEntry { return letThrough }
