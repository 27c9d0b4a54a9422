package cluster

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
)

func FuzzHello(f *testing.F) {
	h := hello{class: Log, cluster: 1, from: 2, to: 3, name: "n1", kind: "ordered", peer: "h:1"}
	f.Add(h.append(nil))
	f.Add([]byte(magic))
	f.Add(append([]byte(magic), protoVersion+1))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHello(b)
		if err != nil {
			return
		}
		if again := h.append(nil); !bytes.HasPrefix(b, again) {
			t.Fatalf("%x became %x", b, again)
		}
	})
}

func FuzzFrames(f *testing.F) {
	f.Add(appendFrame(appendFrame(nil, 16, nil, []byte("abc")), 17, []byte("head"), nil))
	f.Add([]byte{0xff, 0xff, 0xff, 0x0f, 1, 2, 3})
	f.Add([]byte{0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		var again []byte
		for {
			kind, n, err := readHead(r)
			if err != nil {
				break
			}
			body, err := readBody(r, n)
			if err != nil {
				break
			}
			again = appendFrame(again, kind, nil, body)
		}
		if !bytes.HasPrefix(b, again) {
			t.Fatalf("%x became %x", b, again)
		}
		if w, err := parseWelcome(b); err == nil {
			if again := w.append(nil); !bytes.HasPrefix(b, again) {
				t.Fatalf("%x became %x", b, again)
			}
		}
	})
}

// A length alone gets a peer no more than bodyStep of memory, however large it
// claims its frame to be.
func TestLengthAloneGetsLittleMemory(t *testing.T) {
	largest := 0
	sent := strings.NewReader(strings.Repeat("x", 3*bodyStep))
	_, err := readBody(readerFunc(func(p []byte) (int, error) {
		largest = max(largest, len(p))
		return sent.Read(p)
	}), MaxFrame)
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
	if largest > 2*bodyStep {
		t.Errorf("asked for %d bytes at once after %d had come", largest, 3*bodyStep)
	}
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
