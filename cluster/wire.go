package cluster

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Class says what a connection carries. Each has a connection, a queue and
// goroutines of its own.
type Class uint8

const (
	Control Class = iota // small and urgent: heartbeats, votes, read indexes
	Log                  // entries
	Calls                // requests and responses
	Bulk                 // streams: one connection each

	classes
)

// String is the word for it in logs and metrics.
func (c Class) String() string {
	if c < classes {
		return [classes]string{"control", "log", "calls", "bulk"}[c]
	}
	return fmt.Sprintf("class %d", uint8(c))
}

const (
	protoVersion = 2
	magic        = "attn"

	// MinKind is the lowest kind of a frame, call or stream that users of this
	// package may define; those below are its own.
	MinKind = 16
	// MaxFrame is the longest body that can be sent at all, in bytes: a value of
	// 128 MiB with what surrounds it, and as much again.
	MaxFrame = 256 << 20
	// DefaultLimit is the longest body a node accepts of a kind whose handler
	// was registered without [Limit], in bytes.
	DefaultLimit = 1<<20 + 64<<10

	maxHandshake = 1 << 10 // HELLO, WELCOME, REFUSED
	maxReason    = 512     // of REFUSED, so that it fits

	frameHead    = 5  // len, kind
	requestHead  = 13 // call, timeout, kind
	responseHead = 9  // call, status
	chunkHead    = 4  // crc
)

// Kinds of frames.
const (
	kindHello byte = iota
	kindWelcome
	kindRefused
	kindRequest
	kindResponse
	kindStream
	kindChunk
	kindEnd
	kindFailed
)

// Statuses of a response.
const (
	statusDone        byte = iota
	statusFailed           // executed, as far as it got
	statusNotExecuted      // and never will be
)

// garbage is the error of bytes that no attune wrote.
type garbage string

func (g garbage) Error() string { return string(g) }

// hello opens a connection.
type hello struct {
	class             Class
	cluster, from, to uint64
	name, kind, peer  string
}

func (h *hello) append(b []byte) []byte {
	b = append(b, magic...)
	b = append(b, protoVersion, byte(h.class))
	b = binary.LittleEndian.AppendUint64(b, h.cluster)
	b = binary.LittleEndian.AppendUint64(b, h.from)
	b = binary.LittleEndian.AppendUint64(b, h.to)
	b = appendText(b, h.name)
	b = appendText(b, h.kind)
	return appendText(b, h.peer)
}

// errVersion is returned by parseHello for a peer of another version, which may
// have laid out everything behind the version otherwise.
var errVersion = errors.New("it speaks another version of the peer protocol: run the same release on all nodes")

func parseHello(b []byte) (hello, error) {
	c := cursor{b: b}
	if string(c.take(len(magic))) != magic {
		return hello{}, garbage("a first frame that is not attune's")
	}
	if v := c.u8(); !c.short && v != protoVersion {
		return hello{}, errVersion
	}
	h := hello{class: Class(c.u8()), cluster: c.u64(), from: c.u64(), to: c.u64()}
	h.name, h.kind, h.peer = c.text(), c.text(), c.text()
	switch {
	case c.short:
		return hello{}, garbage("a first frame that is too short")
	case h.class >= classes:
		return hello{}, garbage("an unknown class of connection")
	case h.from == 0:
		return hello{}, garbage("a peer without an id")
	}
	return h, nil
}

// welcome answers a hello.
type welcome struct {
	id, nonce, age uint64 // age in ms
	name           string
}

func (w *welcome) append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint64(b, w.id)
	b = binary.LittleEndian.AppendUint64(b, w.nonce)
	b = binary.LittleEndian.AppendUint64(b, w.age)
	return appendText(b, w.name)
}

func parseWelcome(b []byte) (welcome, error) {
	c := cursor{b: b}
	w := welcome{id: c.u64(), nonce: c.u64(), age: c.u64(), name: c.text()}
	if c.short {
		return welcome{}, garbage("a welcome that is too short")
	}
	return w, nil
}

// appendFrame appends a frame whose body is in two parts.
func appendFrame(b []byte, kind byte, head, body []byte) []byte {
	b = appendHead(b, kind, len(head)+len(body))
	b = append(b, head...)
	return append(b, body...)
}

// appendHead appends what comes before a body of n bytes.
func appendHead(b []byte, kind byte, n int) []byte {
	return append(binary.LittleEndian.AppendUint32(b, uint32(n+1)), kind)
}

// readHead reads what comes before a body: its kind and how long it claims to
// be, which is at most MaxFrame. The error is io.EOF where a frame could begin.
func readHead(r io.Reader) (kind byte, n int, err error) {
	var b [frameHead]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return 0, 0, err
	}
	size := binary.LittleEndian.Uint32(b[:])
	if size == 0 || size > MaxFrame+1 {
		return 0, 0, garbage("a frame of an impossible length")
	}
	return b[4], int(size) - 1, nil
}

// bodyStep is how much memory a length alone is worth. What is longer gets more
// as its bytes arrive, twice as much each time, so that a peer has to send what
// it wants us to hold.
const bodyStep = 1 << 20

// readBody reads n bytes, which the caller has compared with a limit, into
// memory of their own.
func readBody(r io.Reader, n int) ([]byte, error) {
	b := make([]byte, min(n, bodyStep))
	for have := 0; ; {
		if _, err := io.ReadFull(r, b[have:]); err != nil {
			return nil, unexpected(err)
		}
		if have = len(b); have == n {
			return b, nil
		}
		grown := make([]byte, min(n, 2*have))
		copy(grown, b)
		b = grown
	}
}

// readSmall reads one frame of a handshake.
func readSmall(r io.Reader) (kind byte, body []byte, err error) {
	kind, n, err := readHead(r)
	if err != nil {
		return 0, nil, err
	}
	if n > maxHandshake {
		return 0, nil, garbage("a handshake that is too long")
	}
	body, err = readBody(r, n)
	return kind, body, err
}

// unexpected turns the end of the input within a frame into the error it is.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
