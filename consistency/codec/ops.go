package codec

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/attunekv/attune"
)

// opsFormat is the version of ops on their way.
const opsFormat = 1

// What an op has besides verb, mode and key.
const (
	opValue = 1 << iota
	opFlags
	opExptime
	opVivifyTTL
	opRecacheTTL
	opCompare
	opCAS
	opDelta
	opInitial
	opFields = 1<<9 - 1
)

const (
	// leastOp is the bytes of the smallest op.
	leastOp = 1 + 1 + 1 + 1
	// trustedOps is how many ops get memory before they are read. An op in
	// memory is forty times the smallest encoded one.
	trustedOps = 1024
	// modes are all bits of a Mode.
	modes = attune.IfMatch<<1 - 1
)

// AppendOps appends ops to buf, without the hashes of their keys. A key of more
// than 255 bytes is a panic.
func AppendOps(buf []byte, ops []attune.Op) []byte {
	buf = append(buf, opsFormat)
	buf = binary.AppendUvarint(buf, uint64(len(ops)))
	for i := range ops {
		buf = appendOp(buf, &ops[i])
	}
	return buf
}

func appendOp(buf []byte, op *attune.Op) []byte {
	fields := when(op.Value != nil, opValue) | when(op.Flags != 0, opFlags) | when(op.Exptime != 0, opExptime) |
		when(op.VivifyTTL != 0, opVivifyTTL) | when(op.RecacheTTL != 0, opRecacheTTL) | when(op.Compare != 0, opCompare) |
		when(op.CAS != 0, opCAS) | when(op.Delta != 0, opDelta) | when(op.Initial != 0, opInitial)
	buf = append(buf, byte(op.Verb))
	buf = binary.AppendUvarint(buf, uint64(op.Mode))
	buf = binary.AppendUvarint(buf, fields)
	buf = appendKey(buf, op.Key.Text)
	if op.Value != nil {
		buf = appendBytes(buf, op.Value)
	}
	buf = appendNonzero(buf, uint64(op.Flags))
	buf = appendNonzero(buf, zigzag(op.Exptime))
	buf = appendNonzero(buf, zigzag(op.VivifyTTL))
	buf = appendNonzero(buf, zigzag(op.RecacheTTL))
	buf = appendNonzero(buf, op.Compare)
	buf = appendNonzero(buf, op.CAS)
	buf = appendNonzero(buf, op.Delta)
	return appendNonzero(buf, op.Initial)
}

// DecodeOps appends the ops in data, which must hold nothing else, to ops. Keys
// have their text only, nil if empty; it and values alias data. After an error
// the ops returned mean nothing. Errors: [ErrFormat], [ErrCorrupt].
func DecodeOps(data []byte, ops []attune.Op) ([]attune.Op, error) {
	d, n, err := list(data, opsFormat, leastOp)
	if err != nil {
		return ops, fmt.Errorf("ops: %w", err)
	}
	ops = slices.Grow(ops, min(n, trustedOps))
	for ; n > 0 && !d.bad; n-- {
		ops = append(ops, attune.Op{})
		d.op(&ops[len(ops)-1])
	}
	if d.bad || len(d.data) > 0 {
		return ops, fmt.Errorf("ops: %w", ErrCorrupt)
	}
	return ops, nil
}

func (d *decoder) op(op *attune.Op) {
	op.Verb = attune.Verb(d.byte())
	mode, fields := d.uvarint(), d.uvarint()
	d.check(op.Verb <= attune.Flush && mode <= uint64(modes) && fields <= opFields)
	op.Mode = attune.Mode(mode)
	if n := d.byte(); n > 0 {
		op.Key.Text = d.take(uint64(n))
	}
	if fields&opValue != 0 {
		op.Value = d.take(d.uvarint())
	}
	op.Flags = d.u32(d.nonzero(fields&opFlags != 0))
	op.Exptime = unzigzag(d.nonzero(fields&opExptime != 0))
	op.VivifyTTL = unzigzag(d.nonzero(fields&opVivifyTTL != 0))
	op.RecacheTTL = unzigzag(d.nonzero(fields&opRecacheTTL != 0))
	op.Compare = d.nonzero(fields&opCompare != 0)
	op.CAS = d.nonzero(fields&opCAS != 0)
	op.Delta = d.nonzero(fields&opDelta != 0)
	op.Initial = d.nonzero(fields&opInitial != 0)
}
