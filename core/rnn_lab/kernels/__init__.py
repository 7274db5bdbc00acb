"""Operations with several backends, one of which is always the plain reference."""
