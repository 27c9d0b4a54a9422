package controller

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

func TestEventsAreTheNewestLines(t *testing.T) {
	var e events
	core, logs := observer.New(zap.ErrorLevel)
	log := zap.New(core).WithOptions(zap.WrapCore(e.keep))
	if len(e.list()) != 0 {
		t.Error("there are events before anything happened")
	}
	for i := range 3 * maxEvents {
		log.Info("line", zap.Int("i", i))
	}
	all := e.list()
	if len(all) != maxEvents || all[0].Text != fmt.Sprint("line; i ", 3*maxEvents-1) || all[maxEvents-1].Text != fmt.Sprint("line; i ", 2*maxEvents) {
		t.Errorf("%d events, from %q to %q", len(all), all[len(all)-1].Text, all[0].Text)
	}
	if logs.Len() != 0 {
		t.Errorf("%d lines of level info are in a log of errors", logs.Len())
	}

	log.Debug("for developers")
	part := log.With(zap.String("part", "a"))
	_ = log.With(zap.String("part", "b"))
	part.Error("failed", zap.Error(errors.New("no room")), zap.Strings("files", []string{"x", "y"}))
	part.Warn("went on", zap.Error(nil))
	all = e.list()
	if all[1].Text != "failed; part a; error no room; files [x y]" || all[1].Level != "error" || all[0].Text != "went on; part a" || all[0].Level != "warn" {
		t.Errorf("%+v", all[:2])
	}
	if logs.Len() != 1 {
		t.Errorf("%d lines in the log, want the error", logs.Len())
	}

	for range 5 {
		log.Warn("again and again")
	}
	if all = e.list(); all[0].Times != 5 || all[0].Text != "again and again" || all[1].Text != "went on; part a" || all[1].Times != 1 {
		t.Errorf("%+v", all[:2])
	}
	log.Warn(strings.Repeat("ä", maxEventText))
	if text := e.list()[0].Text; len(text) > maxEventText+3 || !strings.HasSuffix(text, "ä...") {
		t.Errorf("%d bytes, ending in %q", len(text), text[len(text)-6:])
	}
}

func TestEventsOfManyGoroutines(t *testing.T) {
	var e events
	log := zap.NewNop().WithOptions(zap.WrapCore(e.keep))
	var wait sync.WaitGroup
	for g := range 4 {
		wait.Go(func() {
			for i := range 100 {
				log.Info("line", zap.Int("of", g), zap.Int("i", i))
				if n := len(e.list()); n == 0 || n > maxEvents {
					t.Errorf("%d events", n)
				}
			}
		})
	}
	wait.Wait()
	if n := len(e.list()); n != maxEvents {
		t.Errorf("%d events, want %d", n, maxEvents)
	}
}
