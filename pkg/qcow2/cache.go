package qcow2

import (
	"container/list"
	"sync"
)

// cache keeps the most recently used results of loads, at most max of them. Many
// goroutines may use it; those that want one key wait for one load.
type cache struct {
	mu  sync.Mutex
	max int
	m   map[int64]*list.Element
	lru list.List // of *cached, most recent first
}

type cached struct {
	key  int64
	once sync.Once
	data []byte
	err  error
}

// newCache returns a cache of about limit bytes for values of size bytes each, but
// of at least two values.
func newCache(limit, size int64) *cache {
	return &cache{max: int(max(limit/size, 2)), m: map[int64]*list.Element{}}
}

// get returns the value of key, which load makes if it is not there. The value is
// shared and must not be changed. A failed load is not kept.
func (c *cache) get(key int64, load func() ([]byte, error)) ([]byte, error) {
	c.mu.Lock()
	el, ok := c.m[key]
	if ok {
		c.lru.MoveToFront(el)
	} else {
		el = c.lru.PushFront(&cached{key: key})
		c.m[key] = el
		if c.lru.Len() > c.max {
			c.remove(c.lru.Back())
		}
	}
	c.mu.Unlock()
	v := el.Value.(*cached)
	v.once.Do(func() { v.data, v.err = load() })
	if v.err != nil {
		c.mu.Lock()
		if c.m[key] == el {
			c.remove(el)
		}
		c.mu.Unlock()
	}
	return v.data, v.err
}

// has reports whether a load of key was begun and is kept.
func (c *cache) has(key int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.m[key]
	return ok
}

func (c *cache) remove(el *list.Element) {
	c.lru.Remove(el)
	delete(c.m, el.Value.(*cached).key)
}
