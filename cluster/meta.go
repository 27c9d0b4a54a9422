package cluster

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/hashicorp/memberlist"
)

// metaVersion is the first byte of a node's own words in gossip. Fields may be
// appended without a new version: who does not know them ignores them.
const metaVersion = 1

const metaReady = 1 // bit of the flags

// meta is what a node says of itself by gossip.
//
//	version u8 | flags u8 | id u64 | cluster u64 | expect u16 | kind | peer | listen | admin
type meta struct {
	id, cluster               uint64
	expect                    uint16
	ready                     bool
	kind, peer, listen, admin string
}

func (m *meta) append(b []byte) []byte {
	var flags byte
	if m.ready {
		flags |= metaReady
	}
	b = append(b, metaVersion, flags)
	b = binary.LittleEndian.AppendUint64(b, m.id)
	b = binary.LittleEndian.AppendUint64(b, m.cluster)
	b = binary.LittleEndian.AppendUint16(b, m.expect)
	for _, s := range [...]string{m.kind, m.peer, m.listen, m.admin} {
		b = appendText(b, s)
	}
	return b
}

// check says what does not fit into gossip.
func (m *meta) check() error {
	for _, s := range [...]string{m.kind, m.peer, m.listen, m.admin} {
		if len(s) > math.MaxUint8 {
			return fmt.Errorf("%.40q... is %d bytes long, at most %d can be told to other nodes", s, len(s), math.MaxUint8)
		}
	}
	if n := len(m.append(nil)); n > memberlist.MetaMaxSize {
		return fmt.Errorf("the listen, admin and peer addresses are %d bytes too long together to be told to other nodes", n-memberlist.MetaMaxSize)
	}
	return nil
}

var errMeta = errors.New("it does not gossip as this version of attune does")

func parseMeta(b []byte) (meta, error) {
	c := cursor{b: b}
	if c.u8() != metaVersion {
		return meta{}, errMeta
	}
	m := meta{ready: c.u8()&metaReady != 0, id: c.u64(), cluster: c.u64(), expect: c.u16()}
	m.kind, m.peer, m.listen, m.admin = c.text(), c.text(), c.text(), c.text()
	if c.short || m.id == 0 {
		return meta{}, errMeta
	}
	return m, nil
}

// appendText appends s, which is at most 255 bytes long, after its length.
func appendText(b []byte, s string) []byte {
	return append(append(b, byte(len(s))), s...)
}

// cursor reads fields off the front of b. After one that is not all there, short
// is true and every field is zero.
type cursor struct {
	b     []byte
	short bool
}

func (c *cursor) take(n int) []byte {
	if c.short || len(c.b) < n {
		c.short = true
		return nil
	}
	taken := c.b[:n]
	c.b = c.b[n:]
	return taken
}

func (c *cursor) u8() byte {
	if b := c.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (c *cursor) u16() uint16 {
	if b := c.take(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (c *cursor) u64() uint64 {
	if b := c.take(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

func (c *cursor) text() string { return string(c.take(int(c.u8()))) }
