package controller

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"go.uber.org/zap"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/consistency"
	"github.com/attunekv/attune/internal/snapshot"
	"github.com/attunekv/attune/replica"
)

const (
	// saveMemory bounds what is kept of items that change before they are sent.
	saveMemory = 256 << 20
	// savePatience is how long a client may take nothing of a snapshot.
	savePatience = time.Minute
	// saveSeek is how long other controllers are asked for values that are missing here.
	saveSeek = 30 * time.Second
	// savePiece is what it must take in that time.
	savePiece = 64 << 10
)

// serveSnapshot sends all items as they are at one moment, for `attune snapshot
// save`. That comes after a barrier, so it is a read of everything, as consistent as
// the level's reads are.
func (n *Node) serveSnapshot(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	out := &pieceWriter{w: w, control: http.NewResponseController(w)}
	defer context.AfterFunc(n.ctx, func() {
		cancel(context.Cause(n.ctx))
		_ = out.control.SetWriteDeadline(time.Now().Add(time.Second)) // to say so
	})()
	if err := n.Ready(); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	header := snapshot.Header{Node: n.cfg.Name, Level: n.cfg.Level.String(), Software: n.cfg.Version}
	saves, err := n.openSaves(ctx, &header)
	switch {
	case errors.Is(err, replica.ErrSaving):
		http.Error(w, "this controller is sending a snapshot to somebody else; wait for that, or ask another controller", http.StatusConflict)
		return
	case err != nil:
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	defer closeSaves(saves)
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Connection", "close") // the deadline would stay for what comes after
	began := time.Now()
	items, err := n.sendSnapshot(ctx, out, &header, saves)
	n.log.Info("sent a snapshot", zap.Int64("items", items), zap.Int64("bytes", out.n), zap.Duration("took", time.Since(began)), zap.Error(err))
}

// openSaves takes the moment of all shards, and notes it in header.
func (n *Node) openSaves(ctx context.Context, header *snapshot.Header) (saves []*replica.Save, err error) {
	for _, sh := range n.shards {
		if err := n.barrier(ctx, sh, attune.Session{}); err != nil {
			closeSaves(saves)
			return nil, err
		}
		header.Clock, header.Time = sh.engine.Now(), n.wall().UnixMilli()
		save, err := sh.replica.Save(header.Clock, saveMemory)
		if err != nil {
			closeSaves(saves)
			return nil, err
		}
		saves = append(saves, save)
	}
	return saves, nil
}

func closeSaves(saves []*replica.Save) {
	for _, save := range saves {
		save.Close()
	}
}

// barrier waits until the replica may answer a read of a session that begins now.
func (n *Node) barrier(ctx context.Context, sh *shard, session attune.Session) error {
	passed := make(chan struct{})
	c := &attune.Call{Ctx: ctx, Done: func() { close(passed) }, Session: session}
	if n.inUse().OpTimeout > 0 {
		c.Deadline = time.Now().Add(n.inUse().OpTimeout)
	}
	if sh.engine.Barrier(c) {
		return c.Err
	}
	select {
	case <-passed:
		return c.Err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// sendSnapshot writes the items of saves. What goes wrong on the way is written, too,
// as the client was told already that a snapshot comes.
func (n *Node) sendSnapshot(ctx context.Context, w io.Writer, header *snapshot.Header, saves []*replica.Save) (items int64, err error) {
	out, err := snapshot.NewWriter(w, header)
	if err != nil {
		return 0, err
	}
	var missing int64
	add := func(key []byte, it attune.Item) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		items++
		return out.Add(&snapshot.Record{
			Key: key, Value: it.Value, Flags: it.Flags, Expires: it.Expires,
			Stale: it.Stale, Leased: it.Leased,
		})
	}
	for i, save := range saves {
		err := save.Each(ctx, add)
		if err == nil {
			err = n.seek(ctx, n.shards[i], save, add)
		}
		if err != nil {
			_ = out.Fail(err) // nobody may be there to read it
			return items, err
		}
		missing += save.Missing()
	}
	return items, out.Close(missing)
}

// seek gets what is missing here from others, for a while: what they do not have either
// is told of. Errors: add's.
func (n *Node) seek(ctx context.Context, sh *shard, save *replica.Save, add func(key []byte, it attune.Item) error) (failed error) {
	missing := save.Missing()
	others, ok := sh.engine.(consistency.Repairing)
	if missing == 0 || !ok || !sh.peers {
		return nil
	}
	short, cancel := context.WithTimeout(ctx, saveSeek)
	defer cancel()
	found, err := others.Seek(short, save, func(key []byte, it attune.Item) error {
		failed = add(key, it)
		return failed
	})
	n.log.Info("looked for values of a snapshot at the other controllers", zap.Int64("missing", missing), zap.Int64("found", found), zap.Error(err))
	return failed
}

// pieceWriter gives up a client that does not read.
type pieceWriter struct {
	w       io.Writer
	control *http.ResponseController
	n       int64
}

func (p *pieceWriter) Write(b []byte) (n int, err error) {
	for len(b) > 0 {
		piece := b[:min(len(b), savePiece)]
		if err := p.control.SetWriteDeadline(time.Now().Add(savePatience)); err != nil {
			return n, err
		}
		m, err := p.w.Write(piece)
		n, p.n = n+m, p.n+int64(m)
		if err != nil {
			return n, err
		}
		b = b[m:]
	}
	return n, nil
}
