package gossip

// frame takes what a member sent: the body is the core's to keep, and nobody
// changes it any more. Kinds that are not of this engine, and frames of those that
// are not members, are dropped.
func (k *core) frame(from uint64, kind byte, body []byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.cut.drops(from, kind) {
		return
	}
	switch kind {
	case frameUpdates:
		k.updates(from, body)
	case frameDigest:
		k.digest(from, body)
	case frameFull:
		k.wantsFull(from)
	case frameCells, frameCellsOf, frameWant, frameRecords:
		k.rec.frame(from, kind, body)
	case frameMissing:
		k.missing(from, body)
	case frameCut:
		k.cut.frame(from, body)
	}
}
