package state

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/fnv"
)

// checkPages reads the pages of a bbolt file (its format 2) without trusting anything in them. bbolt itself follows lengths and page numbers with
// unsafe pointers: with a damaged page that ends the process, in goroutines of its own where nothing can be recovered. So this comes first, and
// what it lets through bbolt can be trusted with.
//
// Every page below the high-water mark must be reachable exactly once or free exactly once; every element must lie inside its page; keys must rise.
func checkPages(file []byte) error {
	m, err := findMeta(file)
	if err != nil {
		return err
	}
	if int64(m.pages) > int64(len(file))/int64(m.pageSize) {
		return fmt.Errorf("%d bytes long, but %d pages of %d are in use", len(file), m.pages, m.pageSize)
	}
	c := &pageCheck{file: file, meta: m, seen: make([]bool, m.pages)}
	c.seen[0], c.seen[1] = true, true
	for id := range 2 {
		// A torn meta page is no damage, as the other one counts then; but a tear leaves its first bytes, old or new, alone.
		if head := file[id*m.pageSize:]; order.Uint64(head) != uint64(id) || order.Uint16(head[8:]) != flagMeta {
			return fmt.Errorf("page %d is no meta page", id)
		}
	}
	if err := c.tree(m.root, nil, nil); err != nil {
		return err
	}
	if err := c.freelist(); err != nil {
		return err
	}
	for id, seen := range c.seen {
		if !seen {
			return fmt.Errorf("page %d is neither used nor free", id)
		}
	}
	return nil
}

const (
	pageHeader  = 16
	elementSize = 16
	metaSize    = 64
	boltMagic   = 0xED0CDAED
	boltVersion = 2
	noFreelist  = ^uint64(0)

	flagBranch   = 0x01
	flagLeaf     = 0x02
	flagMeta     = 0x04
	flagFreelist = 0x10
	leafBucket   = 0x01
)

var order = binary.NativeEndian

type boltMeta struct {
	pageSize              int
	root, freelist, pages uint64
	txid                  uint64
}

func parseMeta(b []byte) (boltMeta, bool) {
	if len(b) < pageHeader+metaSize {
		return boltMeta{}, false
	}
	b = b[pageHeader:]
	sum := fnv.New64a()
	_, _ = sum.Write(b[:metaSize-8])
	m := boltMeta{
		pageSize: int(order.Uint32(b[8:])), root: order.Uint64(b[16:]), freelist: order.Uint64(b[32:]),
		pages: order.Uint64(b[40:]), txid: order.Uint64(b[48:]),
	}
	ok := order.Uint32(b) == boltMagic && order.Uint32(b[4:]) == boltVersion && order.Uint64(b[56:]) == sum.Sum64() &&
		m.pageSize >= 1024 && m.pageSize&(m.pageSize-1) == 0 && m.pages >= 4 && m.pages < 1<<40
	return m, ok
}

// findMeta returns the newer one of the two meta pages that are right, as bbolt does.
func findMeta(file []byte) (boltMeta, error) {
	first, ok1 := parseMeta(file)
	sizes := []int{first.pageSize}
	if !ok1 {
		sizes = nil
		for size := 1024; size <= 1<<24; size *= 2 {
			sizes = append(sizes, size)
		}
	}
	for _, size := range sizes {
		if size >= len(file) {
			break
		}
		if second, ok := parseMeta(file[size:]); ok && second.pageSize == size && (!ok1 || second.txid > first.txid) {
			return second, nil
		}
	}
	if !ok1 {
		return first, fmt.Errorf("neither meta page is right")
	}
	return first, nil
}

type pageCheck struct {
	file []byte
	meta boltMeta
	seen []bool
}

// page returns a page with its overflow, after marking it as seen.
func (c *pageCheck) page(id uint64) ([]byte, error) {
	if id < 2 || id >= c.meta.pages {
		return nil, fmt.Errorf("page %d doesn't exist", id)
	}
	size := uint64(c.meta.pageSize)
	head := c.file[id*size:]
	overflow := uint64(order.Uint32(head[12:]))
	if order.Uint64(head) != id || overflow >= c.meta.pages-id {
		return nil, fmt.Errorf("page %d has the header of page %d with %d more", id, order.Uint64(head), overflow)
	}
	for i := id; i <= id+overflow; i++ {
		if c.seen[i] {
			return nil, fmt.Errorf("page %d is used twice", i)
		}
		c.seen[i] = true
	}
	return head[:(overflow+1)*size], nil
}

// tree checks a page and all below it. Its keys must lie in [low, high); nil means no bound.
func (c *pageCheck) tree(id uint64, low, high []byte) error {
	p, err := c.page(id)
	if err != nil {
		return err
	}
	switch flags := order.Uint16(p[8:]); flags {
	case flagBranch:
		return c.branch(id, p, low, high)
	case flagLeaf:
		return c.leaf(id, p, low, high)
	default:
		return fmt.Errorf("page %d has the type %#x in a tree", id, flags)
	}
}

// element returns element i of a page, and the page from that element on: positions count from there.
func element(id uint64, p []byte, i int) ([]byte, error) {
	at := pageHeader + i*elementSize
	if at+elementSize > len(p) {
		return nil, fmt.Errorf("page %d: element %d lies outside", id, i)
	}
	return p[at:], nil
}

func slice(id uint64, e []byte, pos, size uint32) ([]byte, error) {
	if uint64(pos)+uint64(size) > uint64(len(e)) || pos < elementSize {
		return nil, fmt.Errorf("page %d: %d bytes at %d lie outside", id, size, pos)
	}
	return e[pos : pos+size], nil
}

func inOrder(id uint64, key, previous, low, high []byte, first bool) error {
	if len(key) == 0 && !first || !first && bytes.Compare(previous, key) >= 0 || low != nil && bytes.Compare(key, low) < 0 || high != nil && bytes.Compare(key, high) >= 0 {
		return fmt.Errorf("page %d: key %q is out of order", id, key)
	}
	return nil
}

func (c *pageCheck) branch(id uint64, p, low, high []byte) error {
	n := int(order.Uint16(p[10:]))
	if n == 0 {
		return fmt.Errorf("page %d: a branch without leaves", id)
	}
	keys, children := make([][]byte, n), make([]uint64, n)
	for i := range n {
		e, err := element(id, p, i)
		if err != nil {
			return err
		}
		if keys[i], err = slice(id, e, order.Uint32(e), order.Uint32(e[4:])); err != nil {
			return err
		}
		children[i] = order.Uint64(e[8:])
		if err := inOrder(id, keys[i], keys[max(0, i-1)], low, high, i == 0); err != nil {
			return err
		}
	}
	for i, child := range children {
		until := high
		if i+1 < n {
			until = keys[i+1]
		}
		if err := c.tree(child, keys[i], until); err != nil {
			return err
		}
	}
	return nil
}

func (c *pageCheck) leaf(id uint64, p, low, high []byte) error {
	var previous []byte
	for i := range int(order.Uint16(p[10:])) {
		e, err := element(id, p, i)
		if err != nil {
			return err
		}
		flags, pos, ksize, vsize := order.Uint32(e), order.Uint32(e[4:]), order.Uint32(e[8:]), order.Uint32(e[12:])
		key, err := slice(id, e, pos, ksize)
		if err != nil {
			return err
		}
		if uint64(pos)+uint64(ksize)+uint64(vsize) > uint64(len(e)) {
			return fmt.Errorf("page %d: value of %q lies outside", id, key)
		}
		value := e[pos+ksize : pos+ksize+vsize]
		if err := inOrder(id, key, previous, low, high, i == 0); err != nil {
			return err
		}
		previous = key
		switch flags {
		case 0:
		case leafBucket:
			if err := c.bucket(id, value); err != nil {
				return err
			}
		default:
			return fmt.Errorf("page %d: element %d has the type %#x", id, i, flags)
		}
	}
	return nil
}

// bucket checks a bucket: its root page, or the small page inside its value.
func (c *pageCheck) bucket(id uint64, value []byte) error {
	if len(value) < 16 {
		return fmt.Errorf("page %d: a bucket of %d bytes", id, len(value))
	}
	if root := order.Uint64(value); root != 0 {
		return c.tree(root, nil, nil)
	}
	inline := value[16:]
	if len(inline) < pageHeader || order.Uint16(inline[8:]) != flagLeaf {
		return fmt.Errorf("page %d: a bucket without page", id)
	}
	return c.leaf(id, inline, nil, nil)
}

func (c *pageCheck) freelist() error {
	if c.meta.freelist == noFreelist {
		return fmt.Errorf("no list of free pages") // we always store it
	}
	id := c.meta.freelist
	p, err := c.page(id)
	if err != nil {
		return err
	}
	if flags := order.Uint16(p[8:]); flags != flagFreelist {
		return fmt.Errorf("page %d has the type %#x instead of the list of free pages", id, flags)
	}
	ids, n := p[pageHeader:], uint64(order.Uint16(p[10:]))
	if n == 0xFFFF {
		n, ids = order.Uint64(ids), ids[8:]
	}
	if n > uint64(len(ids))/8 {
		return fmt.Errorf("page %d: %d free pages don't fit", id, n)
	}
	for i := range n {
		free := order.Uint64(ids[i*8:])
		if free < 2 || free >= c.meta.pages || c.seen[free] {
			return fmt.Errorf("page %d is free and used, or doesn't exist", free)
		}
		c.seen[free] = true
	}
	return nil
}
