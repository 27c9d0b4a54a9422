package cluster

import (
	"sync"
	"time"

	"go.uber.org/zap"
)

const (
	// warnEvery is how often one warning about one peer is worth a line.
	warnEvery = time.Minute
	// maxWarnings is how many different ones are told apart. Strangers make them
	// up, so there must be an end.
	maxWarnings = 1024
)

// warner logs, but the same thing of the same peer once in warnEvery. A cut
// network or a wrong address is retried many times a second.
type warner struct {
	log  *zap.Logger
	mu   sync.Mutex
	last map[string]time.Time // guarded by mu
}

func newWarner(log *zap.Logger) *warner {
	return &warner{log: log, last: make(map[string]time.Time)}
}

// fresh reports whether text was not said of peer lately.
func (w *warner) fresh(peer, text string) bool {
	key := peer + "\x00" + text
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	if last, ok := w.last[key]; ok && now.Sub(last) < warnEvery {
		return false
	}
	if len(w.last) >= maxWarnings {
		clear(w.last)
	}
	w.last[key] = now
	return true
}

func (w *warner) warn(peer, text string, fields ...zap.Field) {
	if w.fresh(peer, text) {
		w.log.Warn(text, append(fields, zap.String("peer", peer))...)
	}
}

func (w *warner) error(peer, text string, fields ...zap.Field) {
	if w.fresh(peer, text) {
		w.log.Error(text, append(fields, zap.String("peer", peer))...)
	}
}
