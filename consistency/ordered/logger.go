package ordered

import "go.uber.org/zap"

// raftLogger is how Raft speaks: its Info is our Debug, because the core tells
// what matters of it in its own words. Panicf must panic, and does.
type raftLogger struct{ *zap.SugaredLogger }

func (l raftLogger) Info(v ...any)                 { l.SugaredLogger.Debug(v...) }
func (l raftLogger) Infof(format string, v ...any) { l.SugaredLogger.Debugf(format, v...) }
func (l raftLogger) Warning(v ...any)              { l.SugaredLogger.Debug(v...) }
func (l raftLogger) Warningf(format string, v ...any) {
	l.SugaredLogger.Debugf(format, v...)
}
