package raftlog

import (
	"encoding/binary"

	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/attunekv/attune/consistency/disk"
)

// typeRestart is a record of our own.
const typeRestart = disk.TypeOwn

const (
	hardLen = 24 // of a hard state
	// minEntry is the shortest an entry can be.
	minEntry = 3
)

var le = binary.LittleEndian

// hard is a [pb.HardState] without pointers.
type hard struct{ term, vote, commit uint64 }

func hardOf(hs *pb.HardState) hard {
	return hard{hs.GetTerm(), hs.GetVote(), hs.GetCommit()}
}

// state is what Raft takes, nil for none.
func (h hard) state() *pb.HardState {
	if h == (hard{}) {
		return nil
	}
	return &pb.HardState{Term: new(h.term), Vote: new(h.vote), Commit: new(h.commit)}
}

func (h hard) append(b []byte) []byte {
	b = le.AppendUint64(b, h.term)
	b = le.AppendUint64(b, h.vote)
	return le.AppendUint64(b, h.commit)
}

func (h *hard) decode(b []byte) {
	*h = hard{le.Uint64(b), le.Uint64(b[8:]), le.Uint64(b[16:])}
}

// appendBatch appends the payload of a batch.
func appendBatch(b []byte, h hard, ents []*pb.Entry) []byte {
	b = le.AppendUint32(h.append(b), uint32(len(ents)))
	var first uint64
	if len(ents) > 0 {
		first = ents[0].GetIndex()
	}
	b = le.AppendUint64(b, first)
	for _, e := range ents {
		b = binary.AppendUvarint(b, e.GetTerm())
		b = append(b, byte(e.GetType()))
		b = binary.AppendUvarint(b, uint64(len(e.GetData())))
		b = append(b, e.GetData()...)
	}
	return b
}

// decodeBatch is the reverse of appendBatch. The entries' Data are parts of b.
func decodeBatch(b []byte) (h hard, ents []*pb.Entry, err error) {
	if len(b) < hardLen+12 {
		return h, nil, disk.ErrBad
	}
	h.decode(b)
	n, index := le.Uint32(b[hardLen:]), le.Uint64(b[hardLen+4:])
	b = b[hardLen+12:]
	if uint64(n) > uint64(len(b)/minEntry) || index+uint64(n) < index {
		return h, nil, disk.ErrBad
	}
	ents = make([]*pb.Entry, 0, n)
	for range n {
		term, used := binary.Uvarint(b)
		if used <= 0 || used == len(b) {
			return h, nil, disk.ErrBad
		}
		typ := pb.EntryType(b[used])
		if _, known := pb.EntryType_name[int32(typ)]; !known {
			return h, nil, disk.ErrBad
		}
		b = b[used+1:]
		size, used := binary.Uvarint(b)
		if used <= 0 || size > uint64(len(b)-used) {
			return h, nil, disk.ErrBad
		}
		e := &pb.Entry{Term: new(term), Index: new(index), Type: new(typ)}
		if size > 0 {
			e.Data = b[used : used+int(size) : used+int(size)]
		}
		ents = append(ents, e)
		b = b[used+int(size):]
		index++
	}
	if len(b) != 0 {
		return h, nil, disk.ErrBad
	}
	return h, ents, nil
}
