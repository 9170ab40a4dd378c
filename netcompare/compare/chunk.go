package compare

// ChunkSize is the memory that packets are read into at a time. The largest frame of QEMU's (68 KiB and headers) fits
// several times.
const ChunkSize = 256 << 10

// Chunk is memory that packets lie in. It is counted: whoever keeps a part of it must Keep it first and Drop it in the end.
type Chunk struct {
	Data []byte
	refs int
	pool *Pool
}

// Pool makes chunks and uses them again. It belongs to the goroutine of its engine.
type Pool struct {
	free []*Chunk
	used int
}

// Get returns a chunk that is kept once.
func (p *Pool) Get() *Chunk {
	p.used++
	if n := len(p.free); n > 0 {
		c := p.free[n-1]
		p.free = p.free[:n-1]
		c.refs = 1
		return c
	}
	return &Chunk{Data: make([]byte, ChunkSize), refs: 1, pool: p}
}

// Used is how many bytes of chunks are kept by somebody.
func (p *Pool) Used() int { return p.used * ChunkSize }

// Keep counts one keeper more.
func (c *Chunk) Keep() { c.refs++ }

// Drop counts one keeper less; the last one gives the memory back.
func (c *Chunk) Drop() {
	c.refs--
	if c.refs > 0 {
		return
	}
	if c.refs < 0 {
		panic("compare: chunk dropped once too often")
	}
	c.pool.used--
	const spare = 16 // 4 MiB stay for the next burst
	if len(c.pool.free) < spare {
		c.pool.free = append(c.pool.free, c)
	}
}
