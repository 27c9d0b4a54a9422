package disk

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// Identity is who a memory is. It goes with the files: where these are lost, so is it.
type Identity struct {
	ID      uint64   // never 0, never used by two memories
	Cluster [16]byte // the cluster
	Gen     uint32   // generation of the cluster's data
	Seed    uint64   // keys the hash of keys
	Name    string   // for people; at most 255 bytes
}

// Validate is why id cannot be one, or nil.
func (id *Identity) Validate() error {
	if id.ID == 0 {
		return errors.New("id is 0: draw another")
	}
	if len(id.Name) > 255 {
		return fmt.Errorf("name of %d bytes: at most 255", len(id.Name))
	}
	return nil
}

// Format is whose the files of a directory are, and the version of all their formats.
// The engines refuse each other's directories, and leave them alone.
type Format byte

const (
	Raft    Format = 1    // the highest bit is not set
	Journal Format = 0x81 // it is
)

const (
	// maxIdentity bounds an identity file's record.
	maxIdentity = 1 << 10
	charterLen  = 1 + 8 + 1      // up to where a journal was closed
	closedLen   = 1 + 8          // up to the boot; of journals alone
	idLen       = 8 + 16 + 4 + 8 // from the boot to the name
)

// Charter is the identity file. It is always synced, so that what it says of the
// other files never promises more than they keep.
type Charter struct {
	Format Format
	Nonce  uint64 // of this memory: other files with another are not of it
	Sync   Sync   // what the other files survive
	Closed bool   // of a Journal: until they are written again they survive anything
	End    uint64 // of a Journal: where it ends, if it is closed; else 0. Below 1<<63
	boot   string // if Sync is OS: the boot of the machine in which all of them were written
	ID     Identity
}

// Found is the charter of a new memory.
func (f *Files) Found(format Format, id Identity) Charter {
	return Charter{Format: format, Nonce: newNonce(), Sync: f.Sync, boot: f.BootID, ID: id}
}

func (c *Charter) encode() []byte {
	b := make([]byte, HeadLen, 128)
	b = append(b, byte(c.Format))
	b = le.AppendUint64(b, c.Nonce)
	b = append(b, byte(c.Sync))
	if c.Format == Journal {
		b = append(b, 0)
		if c.Closed {
			b[len(b)-1] = 1
		}
		b = le.AppendUint64(b, c.End)
	}
	b = append(b, byte(len(c.boot)))
	b = append(b, c.boot...)
	b = le.AppendUint64(b, c.ID.ID)
	b = append(b, c.ID.Cluster[:]...)
	b = le.AppendUint32(b, c.ID.Gen)
	b = le.AppendUint64(b, c.ID.Seed)
	b = append(b, byte(len(c.ID.Name)))
	b = append(b, c.ID.Name...)
	seal(b, typeIdentity, seedOf(0, 'i', 0), 0)
	return b
}

// ErrFormat is not damage: somebody else can read it.
var ErrFormat = errors.New("its data was written by another version of attune, or at another consistency level: use that, or another directory")

// decode takes the payload of the identity file's record, which is to be of that
// format. Errors: ErrBad, ErrFormat.
func (c *Charter) decode(b []byte, format Format) error {
	if len(b) < 1 {
		return ErrBad
	}
	if c.Format = Format(b[0]); c.Format != format {
		return ErrFormat
	}
	if len(b) < charterLen {
		return ErrBad
	}
	c.Nonce, c.Sync = le.Uint64(b[1:]), Sync(b[9])
	if c.Sync != OS && c.Sync != Always {
		return ErrBad
	}
	b = b[charterLen:]
	if format == Journal {
		if len(b) < closedLen || b[0] > 1 || b[8] >= 0x80 {
			return ErrBad
		}
		c.Closed, c.End = b[0] == 1, le.Uint64(b[1:])
		b = b[closedLen:]
	}
	var ok bool
	if c.boot, b, ok = cutString(b); !ok || len(b) < idLen {
		return ErrBad
	}
	c.ID = Identity{ID: le.Uint64(b), Gen: le.Uint32(b[24:]), Seed: le.Uint64(b[28:])}
	copy(c.ID.Cluster[:], b[8:])
	if c.ID.Name, b, ok = cutString(b[idLen:]); !ok || len(b) > 0 || c.ID.Validate() != nil {
		return ErrBad
	}
	return nil
}

// cutString takes a string off b.
func cutString(b []byte) (s string, rest []byte, ok bool) {
	if len(b) == 0 || len(b)-1 < int(b[0]) {
		return "", nil, false
	}
	end := 1 + int(b[0])
	return string(b[1:end]), b[end:], true
}

// readCharter reads the identity file. Errors: ErrBad, ErrFormat, those of reading.
func (f *Files) readCharter(format Format) (Charter, error) {
	var c Charter
	file, err := os.Open(f.path(identityName))
	if err != nil {
		return c, err
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil {
		return c, err
	}
	r := newRecords(file, info.Size(), seedOf(0, 'i', 0), maxIdentity)
	typ, payload, err := r.next()
	if err == io.EOF {
		return c, ErrBad
	}
	if err != nil {
		return c, err
	}
	if typ != typeIdentity || r.at != info.Size() {
		return c, ErrBad
	}
	return c, c.decode(payload, format)
}

// WriteCharter replaces the identity file, or leaves it as it was, and syncs. On an
// error nobody knows which of the two is there.
func (f *Files) WriteCharter(c *Charter) error {
	const tmp = identityName + tmpSuffix
	if err := f.Remove(tmp); err != nil {
		return err
	}
	file, err := f.create(tmp)
	if err != nil {
		return err
	}
	if err := f.write(file, c.encode()); err != nil {
		return errors.Join(err, file.Close())
	}
	if err := errors.Join(f.sync(file), file.Close()); err != nil {
		return err
	}
	if err := f.rename(tmp, identityName); err != nil {
		return err
	}
	return f.syncDir()
}
