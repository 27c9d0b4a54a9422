package bench

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"
)

func TestDefaultsAreValid(t *testing.T) {
	o := Defaults()
	if err := o.Validate(); err != nil {
		t.Error(err)
	}
}

func TestValidateNamesTheFlag(t *testing.T) {
	for _, c := range []struct {
		flag string
		bad  func(*Options)
	}{
		{"--server", func(o *Options) { o.Server = "" }},
		{"--server", func(o *Options) { o.Server = "localhost" }},
		{"--server", func(o *Options) { o.Server = "localhost:0" }},
		{"--server", func(o *Options) { o.Server = "localhost:http" }},
		{"--server", func(o *Options) { o.Server = "unix:" }},
		{"--vs", func(o *Options) { o.VS = ":70000" }},
		{"--server", func(o *Options) { o.Server = "localhost:1,localhost" }},
		{"--server", func(o *Options) { o.Server = "localhost:1," }},
		{"--vs", func(o *Options) { o.VS = "localhost:1,unix:" }},
		{"--conns", func(o *Options) { o.Server, o.Conns = "a:1,b:1,c:1", 2 }},
		{"--vs-pid", func(o *Options) { o.VSPID = PIDs{1} }},
		{"--pid", func(o *Options) { o.PID = PIDs{1, -1} }},
		{"--pid", func(o *Options) { o.PID = PIDs{7, 8, 7} }},
		{"--verify", func(o *Options) { o.Incr, o.Verify = true, true }},
		{"--protocol", func(o *Options) { o.Protocol = "redis" }},
		{"--conns", func(o *Options) { o.Conns = 0 }},
		{"--threads", func(o *Options) { o.Threads = 0 }},
		{"--pipeline", func(o *Options) { o.Pipeline = maxPipeline + 1 }},
		{"--rate", func(o *Options) { o.Rate = -1 }},
		{"--ratio", func(o *Options) { o.Ratio = Ratio{} }},
		{"--keys", func(o *Options) { o.Keys = 0 }},
		{"--key-size", func(o *Options) { o.KeySize = 251 }},
		{"--key-size", func(o *Options) { o.KeySize, o.Keys = 8, 101 }}, // bench:00 to bench:99
		{"--value-size", func(o *Options) { o.Values = Sizes{5, 4} }},
		{"--dist", func(o *Options) { o.Dist = "normal" }},
		{"--zipf-s", func(o *Options) { o.Dist, o.ZipfS = "zipf", 0 }},
		{"--zipf-s", func(o *Options) { o.Dist, o.ZipfS = "zipf", math.NaN() }},
		{"--warmup", func(o *Options) { o.Warmup = -1 }},
		{"--duration", func(o *Options) { o.Duration = -1 }},
		{"--duration and --ops", func(o *Options) { o.Duration = 0 }},
		{"--ops", func(o *Options) { o.Ops = -1 }},
		{"--rounds", func(o *Options) { o.Rounds = 0 }},
		{"--timeout", func(o *Options) { o.Timeout = 0 }},
	} {
		o := Defaults()
		c.bad(&o)
		if err := o.Validate(); err == nil || !strings.Contains(err.Error(), c.flag+" ") {
			t.Errorf("%s: %v", c.flag, err)
		}
		if r, err := Run(t.Context(), o); err == nil || r != nil {
			t.Errorf("%s: Run accepts what Validate does not", c.flag)
		}
	}
}

func TestFlagValues(t *testing.T) {
	var r Ratio
	for in, want := range map[string]Ratio{"9:1": {9, 1}, "0:1": {0, 1}, "1:0": {1, 0}} {
		if err := r.Set(in); err != nil || r != want || r.String() != in {
			t.Errorf("ratio %s: %v, %v", in, r, err)
		}
	}
	var z Sizes
	for in, want := range map[string]Sizes{"100": {100, 100}, "0": {}, "64-1024": {64, 1024}} {
		if err := z.Set(in); err != nil || z != want || z.String() != in {
			t.Errorf("sizes %s: %v, %v", in, z, err)
		}
	}
	var p PIDs
	for in, want := range map[string]string{"71": "71", "71,72,73": "[71,72,73]"} {
		err := p.Set(in)
		if b, e := json.Marshal(p); err != nil || e != nil || string(b) != want || p.String() != in {
			t.Errorf("pids %s: %s, %v, %v", in, b, err, e)
		}
	}
	for _, in := range []string{"", "0", "-1", "a", "1,", "1,1", "1 2", "99999999999"} {
		if err := p.Set(in); err == nil {
			t.Errorf("pids %q were accepted", in)
		}
	}
	for _, in := range []string{"", "9", "9:", ":1", "-1:1", "0:0", "a:b", "1:2:3"} {
		if err := r.Set(in); err == nil {
			t.Errorf("ratio %q was accepted", in)
		}
	}
	for _, in := range []string{"", "-", "-5", "5-", "9-8", "1k", "1-2-3", "999999999999"} {
		if err := z.Set(in); err == nil {
			t.Errorf("sizes %q were accepted", in)
		}
	}
}

func TestOptionsInOneLine(t *testing.T) {
	o := Defaults()
	o.Rate, o.Dist, o.Ops, o.Rounds = 5000, "zipf", 100, 2
	o.Duration = time.Second
	want := "open loop at 5000 ops/s, 50 connections, pipeline 1, text, get:set 9:1, 100000 keys of 20 bytes zipf s=0.99, values of 100 bytes, 2 rounds of 100 ops or 1s"
	if got := o.String(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	o.Incr, o.Keys = true, 1
	want = "open loop at 5000 ops/s, 50 connections, pipeline 1, text, incr, 1 keys of 20 bytes zipf s=0.99, 2 rounds of 100 ops or 1s"
	if got := o.String(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
