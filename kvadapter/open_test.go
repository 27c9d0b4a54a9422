package kvadapter_test

import (
	"strings"
	"testing"

	"github.com/attunekv/attune/kvadapter"
)

func TestOpenNamesTheChoices(t *testing.T) {
	for _, spec := range []string{"", "Embedded", "memory", "embedded://", "redis://127.0.0.1:6379", "127.0.0.1:11211", "localhost:11211"} {
		b, err := kvadapter.Open(spec)
		if err == nil {
			t.Errorf("%q is opened as %T", spec, b)
			continue
		}
		if !strings.Contains(err.Error(), spec) {
			t.Errorf("%q: error does not name it: %v", spec, err)
		}
		if !strings.Contains(err.Error(), "embedded") || !strings.Contains(err.Error(), "memcached://host:port") {
			t.Errorf("%q: error names no valid backend: %v", spec, err)
		}
	}
}

func TestOpenTakesManyServers(t *testing.T) {
	for _, spec := range []string{
		"memcached://127.0.0.1:1",
		"memcached://127.0.0.1:1,localhost:2,[::1]:3",
		"memcached://[::1]:1,[::1]:2/?timeout=1s&max_idle=2",
	} {
		b, err := kvadapter.Open(spec)
		if err != nil {
			t.Error(err)
			continue
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestOpenSaysWhatItCannotRead(t *testing.T) {
	const spec = "memcached://127.0.0.1:1/%zz"
	if _, err := kvadapter.Open(spec); err == nil || !strings.Contains(err.Error(), spec) || strings.Contains(err.Error(), "list") {
		t.Errorf("%v, want an error about %q", err, spec)
	}
}
