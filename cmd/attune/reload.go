package main

import (
	"bytes"
	"os"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/attunekv/attune/controller"
)

// reloadable is the settings that change while the controller serves. All others
// take a restart: they are addresses, what the cluster goes by, or what a directory
// was made with.
var reloadable = []string{
	"admin-token-file", "write-acks", "max-skew", "tombstone-max-age", "backend", "repair-rate", "memory-limit", "hot-cache",
	"max-item-size", "max-conns", "idle-timeout", "op-timeout", "drain-timeout", "disable-flush-all", "enable-shutdown",
	"trace-endpoint", "trace-sample", "log-level", "log-sample",
}

// reload reads the settings again and has node take over what it can. It returns
// those in use from now on: on error those of before, all of them. What is read is
// in raw either way.
func reload(node *controller.Node, inUse settings, read func() (settings, error)) settings {
	next, err := read()
	merged := inUse
	merged.raw = next.raw
	if err == nil {
		merged, err = adopt(node, merged, &next)
	}
	if node.Reloaded(err); err != nil {
		node.Log().Error("the settings were not reloaded; those of before stay in use", zap.Error(err))
	}
	return merged
}

// adopt is reload with what was read.
func adopt(node *controller.Node, inUse settings, next *settings) (settings, error) {
	merged := inUse
	merged.values, merged.from = make(map[string]string), make(map[string]string)
	var changed, restart []string
	for _, st := range allSettings {
		before, now := inUse.values[st.key], next.values[st.key]
		merged.values[st.key], merged.from[st.key] = now, next.from[st.key]
		if before == now {
			continue
		}
		change := st.key + " " + orDefault(before, "none") + " -> " + orDefault(now, "none")
		if slices.Contains(reloadable, st.key) {
			changed = append(changed, change)
			if err := st.set(&merged, now); err != nil {
				return inUse, err // never: it was parsed before
			}
			continue
		}
		merged.values[st.key], merged.from[st.key] = before, inUse.from[st.key]
		restart = append(restart, change)
	}
	merged.Settings = merged.shown(next)
	if err := node.Reconfigure(merged.Config); err != nil {
		return inUse, err
	}
	if merged.logLevel != inUse.logLevel { // else what /loglevel was told stays
		merged.LogLevel.SetLevel(merged.logLevel)
	}
	if merged.MemoryLimit != inUse.MemoryLimit {
		limitHeap(merged.MemoryLimit, !merged.Alone())
	}
	if len(changed) > 0 {
		node.Log().Info("settings reloaded", zap.Strings("changed", changed))
	} else {
		node.Log().Info("settings reloaded; none has changed that can change while it runs (flags and the environment override the file)")
	}
	if len(restart) > 0 {
		node.Log().Warn("settings that take a restart have changed; those of before stay in use until then", zap.Strings("settings", restart))
	}
	return merged, nil
}

// shown lists the settings as /config shows them, with what of next is not in use.
func (s *settings) shown(next *settings) (all []controller.Setting) {
	for _, st := range allSettings {
		one := controller.Setting{
			Name: st.key, Value: s.values[st.key], From: s.from[st.key], Reloads: slices.Contains(reloadable, st.key),
		}
		if now := next.values[st.key]; now != one.Value {
			one.Waiting = orDefault(now, "none")
		}
		all = append(all, one)
	}
	return all
}

// lookEvery is how often the file of settings is looked at.
const lookEvery = time.Second

// watched is a file that is looked at again and again, instead of asking the kernel
// to be told. That notices any way to change it: an editor that renames a new file
// into place, Kubernetes, which exchanges the symbolic link to its directory, a
// network file system, and an edit that leaves size and time as they were; and it
// costs some microseconds a look.
type watched struct {
	path string
	was  []byte // what was told last
	last []byte // what the last look found
}

// look reports whether there is something new in the file. It counts when two looks
// in a row have found the same, or half of a file would be taken for the whole:
// without its last lines it most often makes sense, too. A file that is missing for
// now is no change.
func (w *watched) look() bool {
	raw, err := os.ReadFile(w.path)
	settled := err == nil && bytes.Equal(raw, w.last)
	w.last = raw
	if !settled || bytes.Equal(raw, w.was) {
		return false
	}
	w.was = raw
	return true
}

// run tells edits of what is new, until stop is closed.
func (w *watched) run(edits chan<- []byte, stop <-chan struct{}) {
	looks := time.NewTicker(lookEvery)
	defer looks.Stop()
	for {
		select {
		case <-looks.C:
		case <-stop:
			return
		}
		if !w.look() {
			continue
		}
		select {
		case edits <- w.was:
		case <-stop:
			return
		}
	}
}
