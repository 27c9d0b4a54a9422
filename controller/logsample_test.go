package controller

import (
	"fmt"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

func TestLogSample(t *testing.T) {
	core, logs := observer.New(zap.InfoLevel)
	cfg := testConfig()
	cfg.Log = zap.New(core)
	cfg.LogSample = LogSample{First: 5, Every: 10}
	n := start(t, cfg)
	part := n.Log().With(zap.String("part", "a"))
	written := func(message string) int { return logs.FilterMessage(message).Len() }
	// Within one second, most likely: of 25 more than the first 5, two are a tenth.
	flood := func(message string) {
		for i := range 30 {
			part.Warn(message, zap.Int("i", i))
			part.Error(message+", badly", zap.Int("i", i))
			part.Debug(message + ", for developers")
		}
	}
	flood("lost")
	dropped := 30 - written("lost")
	if got := written("lost"); got < 7 || got > 14 { // 14: a second ended meanwhile
		t.Errorf("%d of 30 lines, want 7", got)
	}
	if got := written("lost, badly"); got != 30 {
		t.Errorf("%d of 30 errors", got)
	}
	if got := n.logSample.dropped.Load(); got != uint64(dropped) {
		t.Errorf("%d counted, want %d: what the level leaves out does not count", got, dropped)
	}
	if first := logs.FilterMessage("lost").All()[0]; first.ContextMap()["part"] != "a" || first.ContextMap()["node"] != "n1" {
		t.Errorf("%v", first.ContextMap())
	}
	events := 0
	for _, e := range n.events.list() {
		for i := range 30 {
			if e.Text == fmt.Sprintf("lost; node n1; part a; i %d", i) || e.Text == fmt.Sprintf("lost; part a; i %d", i) {
				events++
			}
		}
	}
	if events != 30 {
		t.Errorf("%d events, want all 30", events)
	}

	for _, c := range []struct {
		rule      LogSample
		min, most int
	}{{LogSample{}, 30, 30}, {LogSample{First: 3}, 3, 6}, {LogSample{First: 100, Every: 100}, 30, 30}} {
		next := cfg
		next.LogSample = c.rule
		if err := n.Reconfigure(next); err != nil {
			t.Fatal(err)
		}
		message := fmt.Sprint("rule ", c.rule)
		if flood(message); written(message) < c.min || written(message) > c.most || written(message+", badly") != 30 {
			t.Errorf("%v: %d lines, %d errors", c.rule, written(message), written(message+", badly"))
		}
	}
	cfg.LogSample = LogSample{Every: 3}
	if err := n.Reconfigure(cfg); err == nil {
		t.Error("every third but no first was taken")
	}
}
