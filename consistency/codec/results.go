package codec

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/attunekv/attune"
)

// resultsFormat is the version of results on their way.
const resultsFormat = 1

// What a result has besides its status. Those of most results come first.
const (
	resSize = 1 << iota
	resVersion
	resFlags
	resExpires
	resStored // not that of Version
	resCAS    // not that of Stored
	resValue
	resNumber
	resDeleted
	resErr
	resAccessed
	resFetched
	resBefore
	resAbsent
	resItemStale
	resLeased
	resWon
	resStale
	resTaken
	resFields = 1<<19 - 1
)

// leastResult is the bytes of the smallest result.
const leastResult = 1 + 1

// AppendResults appends res to buf.
func AppendResults(buf []byte, res []attune.Result) []byte {
	buf = append(buf, resultsFormat)
	buf = binary.AppendUvarint(buf, uint64(len(res)))
	for i := range res {
		buf = appendResult(buf, &res[i])
	}
	return buf
}

func appendResult(buf []byte, r *attune.Result) []byte {
	it := &r.Item
	fields := when(it.Size != 0, resSize) | when(it.Version != 0, resVersion) | when(it.Flags != 0, resFlags) |
		when(it.Expires != 0, resExpires) | when(it.Stored != it.Version, resStored) | when(it.CAS != uint64(it.Stored), resCAS) |
		when(it.Value != nil, resValue) | when(r.Number != 0, resNumber) | when(it.Deleted, resDeleted) | when(r.Err != nil, resErr) |
		when(it.Accessed != 0, resAccessed) | when(it.Fetched, resFetched) | when(r.Before != 0, resBefore) |
		when(r.Absent, resAbsent) | when(it.Stale, resItemStale) | when(it.Leased, resLeased) |
		when(r.Won, resWon) | when(r.Stale, resStale) | when(r.Taken, resTaken)
	buf = append(buf, byte(r.Status))
	buf = binary.AppendUvarint(buf, fields)
	buf = appendNonzero(buf, uint64(it.Size))
	buf = appendNonzero(buf, uint64(it.Version))
	buf = appendNonzero(buf, uint64(it.Flags))
	buf = appendNonzero(buf, zigzag(it.Expires))
	if fields&resStored != 0 {
		buf = binary.AppendUvarint(buf, uint64(it.Stored))
	}
	if fields&resCAS != 0 {
		buf = binary.AppendUvarint(buf, it.CAS)
	}
	if fields&resValue != 0 {
		buf = appendBytes(buf, it.Value)
	}
	buf = appendNonzero(buf, r.Number)
	buf = appendNonzero(buf, zigzag(it.Accessed))
	buf = appendNonzero(buf, zigzag(r.Before))
	if fields&resErr != 0 {
		buf = appendBytes(buf, r.Err.Error())
	}
	return buf
}

// DecodeResults fills res with the results in data, of which there must be as
// many. Values alias data; an Err has the text of the one that was sent, and no
// identity. After an error, res means nothing. Errors: [ErrFormat], [ErrCorrupt].
func DecodeResults(data []byte, res []attune.Result) error {
	d, n, err := list(data, resultsFormat, leastResult)
	if err != nil {
		return fmt.Errorf("results: %w", err)
	}
	if n != len(res) {
		return fmt.Errorf("%d results for %d ops: %w", n, len(res), ErrCorrupt)
	}
	for i := range res {
		d.result(&res[i])
	}
	if d.bad || len(d.data) > 0 {
		return fmt.Errorf("results: %w", ErrCorrupt)
	}
	return nil
}

func (d *decoder) result(r *attune.Result) {
	*r = attune.Result{Status: attune.Status(d.byte())}
	it := &r.Item
	fields := d.uvarint()
	d.check(r.Status <= attune.Failed && fields <= resFields)
	it.Size = d.size(d.nonzero(fields&resSize != 0))
	it.Version = attune.Version(d.nonzero(fields&resVersion != 0))
	it.Flags = d.u32(d.nonzero(fields&resFlags != 0))
	it.Expires = unzigzag(d.nonzero(fields&resExpires != 0))
	if it.Stored = it.Version; fields&resStored != 0 {
		it.Stored = attune.Version(d.uvarint())
		d.check(it.Stored != it.Version)
	}
	if it.CAS = uint64(it.Stored); fields&resCAS != 0 {
		it.CAS = d.uvarint()
		d.check(it.CAS != uint64(it.Stored))
	}
	if fields&resValue != 0 {
		it.Value = d.take(d.uvarint())
	}
	r.Number = d.nonzero(fields&resNumber != 0)
	it.Accessed = unzigzag(d.nonzero(fields&resAccessed != 0))
	r.Before = unzigzag(d.nonzero(fields&resBefore != 0))
	if fields&resErr != 0 {
		r.Err = errors.New(string(d.take(d.uvarint())))
	}
	it.Deleted, it.Stale, it.Leased, it.Fetched = fields&resDeleted != 0, fields&resItemStale != 0, fields&resLeased != 0, fields&resFetched != 0
	r.Absent, r.Won, r.Stale, r.Taken = fields&resAbsent != 0, fields&resWon != 0, fields&resStale != 0, fields&resTaken != 0
}
